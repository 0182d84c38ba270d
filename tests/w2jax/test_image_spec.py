"""Images prepared for pretrained models, against timm's and Hugging Face's own pipelines."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from w2jax.convert.image_configs import image_spec
from w2jax.image_spec import ImageSpec

FIXTURES = Path(__file__).parents[1] / "fixtures" / "images"
PHOTO = FIXTURES / "turned.jpg"
CASES = json.loads((FIXTURES / "cases.json").read_text())
PLAIN = ImageSpec((5, 7), (5, 7), "bilinear", (0.2,), (0.5,))


@pytest.mark.parametrize("name", CASES)
def test_a_photo_is_prepared_as_by_its_library(name: str) -> None:
    spec = image_spec(CASES[name]["config"], CASES[name].get("preprocessor"), 0)
    assert spec is not None
    expected = np.load(FIXTURES / "prepared.npz")[name]
    np.testing.assert_allclose(spec.preprocess(PHOTO), expected[None], rtol=0, atol=1e-5)


def test_a_path_an_image_and_an_array_give_the_same_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (11, 9, 3), np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    spec = ImageSpec((5, 7), 8)
    expected = spec.preprocess([pixels])
    assert expected.shape == (1, 5, 7, 3) and expected.dtype == np.float32
    for images in (path, str(path), Image.open(path), pixels, pixels[None], (path,), jax.numpy.asarray(pixels)):
        np.testing.assert_array_equal(spec.preprocess(images), expected)
    np.testing.assert_array_equal(
        spec.preprocess([path, pixels[::-1]]), spec.preprocess(np.stack([pixels, pixels[::-1]]))
    )


def test_normalizing_gives_the_same_inside_jit() -> None:
    images = np.arange(2 * 5 * 7 * 3, dtype=np.uint8).reshape(2, 5, 7, 3)
    spec = ImageSpec((5, 7), (5, 7), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    expected = (images / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.4, 0.5, 0.6])
    np.testing.assert_allclose(spec.normalize(images), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(jax.jit(spec.normalize)(images), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_get_the_channels_of_the_model(channels: int) -> None:
    spec = ImageSpec((2, 3), (2, 3), "nearest", (0.0,) * channels, (1.0,) * channels)
    gray, red = np.full((2, 3), 51, np.uint8), np.full((2, 3, 3), (255, 0, 0), np.uint8)
    of_gray, of_red = spec.resize_images([gray, red])[:, 0, 0].tolist()
    assert of_gray == [[51], [51] * 3, [51] * 3 + [255]][channels // 2]
    assert of_red == [[76], [255, 0, 0], [255, 0, 0, 255]][channels // 2]


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "must be a path, a Pillow image or a uint8 array"),
        (np.zeros((4, 4, 2), np.uint8), r"got ndarray of uint8 \[4, 4, 2\]"),
        (None, "got NoneType of object"),
        ([], "at least one image"),
        (Image.new("I;16", (3, 3)), "8 bits per channel, got Pillow's mode I;16"),
        (Image.new("L", (1, 16_385)), "must be less elongated, got 16385×1 pixels"),
        (__file__, "must be a complete image"),
    ],
)
def test_what_is_no_image_is_refused(picture: Any, message: str) -> None:
    spec = ImageSpec((5, 7), 16_384) if "elongated" in message else PLAIN
    with pytest.raises(ValueError, match=message):
        spec.preprocess(picture)


def test_a_damaged_and_a_missing_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    path.write_bytes(PHOTO.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"cut\.jpg must be a complete image"):
        PLAIN.preprocess(path)
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        PLAIN.preprocess(tmp_path / "missing.png")


def test_without_pillow_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="pip install pillow"):
        PLAIN.preprocess(PHOTO)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": (0, 7)}, "image_size must be height and width from 1 to 16384"),
        ({"resize": 2**20}, "resize must be"),
        ({"mean": (0.5, 0.5)}, "mean must be a tuple of 1, 3 or 4 numbers"),
        ({"std": (0.5, 0.0, 0.5)}, "std must be a tuple of 1, 3 or 4 positive numbers"),
        ({"mean": (0.5, float("nan"), 0.5)}, "mean must be"),
        ({"mean": (0.5,)}, "mean and std must have the same length, got 1 and 3"),
    ],
)
def test_values_that_no_images_have_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageSpec(**({"image_size": (5, 7), "resize": 9} | fields))
