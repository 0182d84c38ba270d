"""`train.predict --rollout`: the shares of the patches are those of a rollout by hand, and are at their place."""

import base64
import dataclasses
import io
import re
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import random_variables
from PIL import Image
from predictors import untrained
from tasks import preset

from train.predict import load, make_predictor
from train.predict.__main__ import Options, check_options, main
from train.predict.rollout import Pictures, covered, inside, overlaid, spread
from train.process.errors import UserError
from train.run.folder import ImageInfo
from train.task import Rollout
from w2jax import ViT
from w2jax.image_spec import ImageSpec

TIMM = Path(__file__).parents[1] / "fixtures/predict/timm"
VIT = ViT(3, patch_size=(4, 5), embed_dim=12, depth=3, num_heads=2, mlp_dim=8)
PLAIN = VIT.clone(class_token=False, pool="gap")
SIZE = (12, 10)


def predictor_of(model, images=(*SIZE, 3), **data):
    """Returns a predictor with random weights, which attends unevenly."""
    config = preset("vit", "tiny")
    config = dataclasses.replace(config, model=model, data=dataclasses.replace(config.data, **data))
    variables = random_variables(model, jnp.zeros((1, *images)))
    return make_predictor(config, ImageInfo(images, ["a", "b", "c"]), variables, "random ones")


def pool_attention(predictor, inputs):
    """Returns what the learned query of an attention pool attends to [T], by its parameters."""
    params = predictor.state.params
    (tokens,) = predictor.config.model.features({"params": params}, inputs)
    pool = {name: np.asarray(x) for name, x in params["pool"]["attention"]["query"].items()}
    keys = {name: np.asarray(x) for name, x in params["pool"]["attention"]["key"].items()}
    query = np.einsum("d,dhk->hk", np.asarray(params["pool"]["probe"])[0, 0], pool["kernel"]) + pool["bias"]
    key = np.einsum("td,dhk->thk", np.asarray(tokens)[0], keys["kernel"]) + keys["bias"]
    first = 0 if predictor.config.model.pool_prefix else predictor.config.model.num_registers + 1
    logits = np.einsum("hk,thk->ht", query, key[first:]) / np.sqrt(query.shape[-1])
    weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    return np.concatenate([np.zeros(first), weights.mean(axis=0)])


MODELS = {  # the model, and the share of each token in what its classifier reads; 6 patches
    "class token": (VIT, [1] + 6 * [0]),
    "registers": (VIT.clone(num_registers=2), [1] + 8 * [0]),
    "distilled": (VIT.clone(num_registers=1, distilled=True), [1 / 2, 1 / 2] + 6 * [0]),
    "scanned": (VIT.clone(scan_layers=True), [1] + 6 * [0]),
    "mean, no class token": (PLAIN, 6 * [1 / 6]),
    "mean, registers": (PLAIN.clone(num_registers=2), [0, 0] + 6 * [1 / 6]),
    "mean of all": (VIT.clone(pool="gap", pool_prefix=True), 7 * [1 / 7]),
    "class token and mean": (VIT.clone(pool="cls_gap"), [1 / 2] + 6 * [1 / 12]),
    "attention pool": (VIT.clone(pool="map", num_registers=1), pool_attention),
    "attention pool of all": (VIT.clone(pool="map", pool_prefix=True, scan_layers=True), pool_attention),
    "dropped": (VIT.clone(partial_patches="drop"), [1] + 6 * [0]),
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_shares_are_those_of_a_rollout_by_hand(kind):
    """By hand, the classifier's shares go back through the blocks: half of a token is what it was before the block."""
    model, read = MODELS[kind]
    predictor = predictor_of(model, (14, 13, 3) if kind == "dropped" else (*SIZE, 3))
    images = np.random.default_rng(0).integers(0, 256, (2, *predictor.image_shape), np.uint8)
    shares = np.asarray(jax.jit(predictor.task.rollout.shares)(predictor.state, images))
    for image, found in zip(images, shares, strict=True):
        inputs = jnp.asarray(image[None] / 127.5 - 1, jnp.float32)
        _, attentions = model.apply({"params": predictor.state.params}, inputs, return_attention=True)
        row = np.array(read(predictor, inputs) if callable(read) else read)
        for weights in reversed(attentions):
            row = 0.5 * row + 0.5 * row @ np.asarray(weights)[0].mean(axis=0)
        assert row.sum() == pytest.approx(1, abs=1e-5) and np.ptp(row[-6:]) > 1e-4
        np.testing.assert_allclose(found, row[-6:].reshape(3, 2), atol=1e-5)
    assert predictor.task.rollout.patch == (4, 5)


def spec(size, resize, **options):
    return ImageSpec(size, resize, **options)


@pytest.mark.parametrize(
    ("described", "shape", "whole"),
    [
        (spec(SIZE, 16), (90, 120), False),
        (spec(SIZE, (24, 16), stretch=True), (120, 90), False),
        (spec(SIZE, (16, 20), stretch=False), (90, 200), False),
        (spec((30, 40), 20), (90, 120), False),  # with a black frame
        (None, (90, 200), True),
        (0.6, (90, 200), False),
    ],
)
def test_the_box_is_the_part_of_the_photo_that_the_model_gets(described, shape, whole):
    """Of a photo whose values say where a pixel is, the model gets the values of the box."""
    size = SIZE if described in (None, 0.6) else described.image_size
    predictor = predictor_of(VIT.clone(patch_size=2), (*size, 3), crop=described if described == 0.6 else None)
    predictor = dataclasses.replace(predictor, spec=described if described not in (None, 0.6) else None)
    left, top, right, bottom = predictor.box(*shape)
    assert ((left, top, right, bottom) == (0, 0, shape[1], shape[0])) == whole
    y, x = np.indices(shape)
    photo = np.stack([x + 20, y + 20, 0 * x], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "PNG")
    seen = predictor.decode(file.getvalue()).astype(float)
    across = left + (np.arange(size[1]) + 0.5) / size[1] * (right - left) - 0.5
    down = top + (np.arange(size[0]) + 0.5) / size[0] * (bottom - top) - 0.5
    in_photo = (down > 0)[:, None] & (down < shape[0] - 1)[:, None] & (across > 0) & (across < shape[1] - 1)
    step = np.ceil(max((right - left) / size[1], (bottom - top) / size[0]))  # at an edge, a pixel is a mean of less
    assert np.abs(seen[..., 0] - 20 - across)[in_photo].max() < step / 2
    assert np.abs(seen[..., 1] - 20 - down[:, None])[in_photo].max() < step / 2
    if described is not None and (left < -1 or top < -1):
        assert not seen[~in_photo & ((down < -step) | (down > shape[0] + step))[:, None]].any()


def test_the_shares_are_at_the_centers_of_their_patches_and_nowhere_else():
    shares = np.random.default_rng(0).uniform(size=(3, 2)).astype(np.float32)
    patches, factor, size = (3.0, 5.0, 23.0, 35.0), 4, (120, 160)
    placed = spread(shares, patches, factor, size)
    expected = (shares - shares.min()) / np.ptp(shares)
    for row in range(3):
        for column in range(2):
            y, x = factor * (5 + 10 * (row + 0.5)), factor * (3 + 10 * (column + 0.5))
            assert placed[int(y), int(x)] == pytest.approx(expected[row, column], abs=0.02)
    outside = ~inside(patches, factor, size)
    assert not placed[outside].any() and outside.sum() == 120 * 160 - 80 * 120
    assert not spread(np.full((3, 2), 0.1, np.float32), patches, factor, size).any()


def test_dropped_partial_patches_are_not_covered():
    rollout = Rollout(lambda *_: None, (4, 5))  # 3 × 2 patches of 14 × 13 pixels
    assert covered((10, 20, 36, 48), (14, 13), (3, 2), rollout) == (10, 20, 30, 44)


def pixels_of(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Returns a folder with the pictures of a wide photo and a gray photo with the same name, by pretrained weights."""
    folder = tmp_path_factory.mktemp("talk")
    rng = np.random.default_rng(0)
    for name, shape in (("x/cat.png", (451, 807, 3)), ("y/Cat.png", (90, 61))):
        (folder / name).parent.mkdir()
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / name)
    photos = [str(folder / "x"), str(folder / "y/Cat.png")]
    assert main([str(TIMM), *photos, "--rollout", str(folder / "out/talk"), "--top-k", "2"]) == 0
    return folder


def test_a_picture_has_the_photo_pixel_by_pixel(drawn):
    """The margin that the model does not see is gray and dark. In the middle, the photo is still there."""
    photo, found = pixels_of(drawn / "x/cat.png"), pixels_of(drawn / "out/talk/cat-rollout.png")
    assert found.shape[1] == 807 and 451 + 50 < found.shape[0] < 451 + 200
    gray = np.asarray(Image.fromarray(photo.astype(np.uint8)).convert("L")).astype(int)
    left, top, right, bottom = load(TIMM).box(451, 807)
    for part in (np.s_[:, : int(left)], np.s_[:, int(right) + 1 :], np.s_[: int(top)], np.s_[int(bottom) + 1 : 451]):
        assert np.abs(found[:451][part] - 0.35 * gray[part][..., None]).max() < 1.6
    middle = np.s_[int(top) + 1 : int(bottom), int(left) + 1 : int(right)]
    assert np.corrcoef(found[:451][middle].ravel(), photo[middle].ravel())[0, 1] > 0.5
    assert np.ptp(found[middle], axis=-1).mean() > 30  # in color


def test_a_small_photo_is_enlarged_by_a_whole_factor_and_photos_with_one_name_get_numbers(drawn):
    names = ["Cat-2-rollout.png", "Cat-2-rollout.svg", "cat-rollout.png", "cat-rollout.svg"]
    assert sorted(path.name for path in (drawn / "out/talk").iterdir()) == names
    photo, found = pixels_of(drawn / "y/Cat.png"), pixels_of(drawn / "out/talk/Cat-2-rollout.png")
    assert found.shape[1] == 61 * 9  # the longer side has 810 pixels
    np.testing.assert_array_less(np.abs(found[:9, : 61 * 9] - 0.35 * photo[:1].repeat(9, 0).repeat(9, 1)), 1.6)


def test_the_svg_has_the_photo_and_the_caption_as_text(drawn, capsys):
    main([str(TIMM), str(drawn / "x/cat.png"), "--top-k", "2"])
    told = re.findall(r"(\w+)  ([\d.]+%)", capsys.readouterr().out)
    text = (drawn / "out/talk/cat-rollout.svg").read_text()
    assert ", ".join(f"{name} {share}" for name, share in told) in text and len(told) == 2
    assert "Attention rollout: the share of each patch in what the classifier reads. The model does not see" in text
    images = [base64.b64decode(code) for code in re.findall(r"data:image/png;base64,\s*([^\"]+)", text)]
    sizes = {Image.open(io.BytesIO(image)).size for image in images}
    assert (807, 451) in sizes


def test_the_brightest_color_is_at_the_patch_with_the_largest_share():
    photo = np.full((300, 900, 3), 90, np.uint8)
    shares = np.full((2, 3), 0.1, np.float32)
    shares[1, 2] = 0.3
    box = (300.0, 0.0, 750.0, 300.0)
    found, whole = overlaid(photo, shares, box, box)
    assert not whole and found.shape == photo.shape
    y, x = np.unravel_index(found.astype(int).sum(axis=-1).argmax(), (300, 900))
    assert 150 <= y < 300 and 600 <= x < 750
    assert overlaid(photo, shares, (0.0, 0.0, 900.0, 300.0), (0.0, 0.0, 900.0, 300.0))[1]


@pytest.fixture
def photo(tmp_path):
    return Path(shutil.copy(TIMM / "photo.jpg", tmp_path / "photo.jpg"))


def test_an_existing_file_is_only_replaced_if_the_user_says_so(photo, tmp_path):
    chosen = partial(Pictures, tmp_path / "out", [photo], tmp_path / "run")
    chosen(overwrite=False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/photo-rollout.svg").write_text("mine")
    with pytest.raises(UserError, match=r"photo-rollout\.svg must not exist yet\. .* or add --overwrite$"):
        chosen(overwrite=False)
    chosen(overwrite=True)
    (tmp_path / "out/photo-rollout.svg").unlink()
    (tmp_path / "out/photo-rollout.svg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="must not exist yet"):
        chosen(overwrite=False)


def test_a_photo_is_never_replaced(photo, tmp_path):
    other = Path(shutil.copy(photo, tmp_path / "photo-rollout.png"))
    with pytest.raises(UserError, match=r"--rollout must not replace one of the images, got .*rollout\.png"):
        Pictures(tmp_path, [photo, other], tmp_path / "run", overwrite=True)


def test_pictures_are_not_written_through_a_link_in_the_run_folder(photo, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/linked").symlink_to(tmp_path)
    with pytest.raises(UserError, match="got a symbolic link"):
        Pictures(tmp_path / "run/linked", [photo], tmp_path / "run", overwrite=False)


def test_a_file_in_the_place_of_the_folder_is_one_line(photo, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"^--rollout must be a folder that can be written, got .*out \(.*\)\. Choose"):
        main([str(TIMM), str(photo), "--rollout", str(tmp_path / "out")])


@pytest.mark.parametrize("case", ["lstm", "mha", "aae"])
def test_another_model_is_refused_in_one_line_that_says_what_to_do(case):
    options = Options("run", (Path("a.png"),), rollout=Path("talk"), out=Path("x.png") if case == "aae" else None)
    with pytest.raises(
        UserError, match=r"^--rollout needs a ViT, .*python -m train\.report RUN --pictures DIR$"
    ) as told:
        check_options(options, untrained(case))
    assert "\n" not in str(told.value)


def test_overwrite_alone_is_refused():
    with pytest.raises(UserError, match=r"^--overwrite must be used with --rollout"):
        check_options(Options("run", (Path("a.png"),), overwrite=True), untrained("vit"))


def test_a_gray_digit_has_a_picture(tmp_path):
    predictor = untrained("vit_scanned")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(tmp_path / "digit.png")
    images = predictor.read([tmp_path / "digit.png"])
    pictures = Pictures(tmp_path / "out", [tmp_path / "digit.png"], tmp_path / "run", overwrite=False)
    pictures.write(predictor, [tmp_path / "digit.png"], images, np.eye(10)[:1], None)
    found = pixels_of(tmp_path / "out/digit-rollout.png")
    assert found.shape[1] == 28 * 29
    text = (tmp_path / "out/digit-rollout.svg").read_text()
    assert "0 100.0%, 1 0.0%, 2 0.0%" in text and "dark margin" not in text
