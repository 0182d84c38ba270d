"""The answers of the page, without a browser and without Gradio."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_drawing import drawn

from train.demo import html
from train.demo.answering import answering
from train.demo.autoencoder import SAMPLES, Autoencoder
from train.demo.classifier import Answer, Classifier
from train.predict import load
from train.process.errors import UserError
from train.task import Latent

ONE, SEVEN = [(0.52, 0.2), (0.48, 0.8)], [(0.3, 0.2), (0.7, 0.2), (0.45, 0.85)]


@pytest.fixture(scope="module")
def digits(digits_run):
    return Classifier(load(digits_run))


@pytest.fixture(scope="module")
def vit(vit_run):
    return Classifier(load(vit_run))


@pytest.fixture(scope="module")
def aae(aae_run):
    return Autoencoder(load(aae_run))


@pytest.mark.parametrize(("points", "name"), [(ONE, "1"), (SEVEN, "7")])
def test_a_drawn_digit_gets_its_name(digits, points, name):
    assert digits.can_draw and digits.is_for_digits
    answer = digits.draw(drawn(points, 20, size=280, scale=0.5, shift=(40, -40)))
    (best, probability), *others = answer.classes
    assert best == name and probability > 0.5
    assert len(others) == 4 and [p for _, p in answer.classes] == sorted([p for _, p in answer.classes], reverse=True)
    assert answer.overlay is None and answer.image.shape == (28, 28, 1)


def test_an_image_file_gives_the_probabilities_of_train_predict(vit, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    answer = vit.read(tmp_path / "a.png")
    image = vit.predictor.read([tmp_path / "a.png"])
    expected = vit.predictor(image)[0]
    assert [name for name, _ in answer.classes] == [str(k) for k in np.argsort(-expected)[:5]]
    np.testing.assert_allclose([p for _, p in answer.classes], np.sort(expected)[::-1][:5], rtol=1e-5)
    overlay = np.asarray(vit.predictor.task.overlay(vit.predictor.state, jnp.asarray(image)))[0]
    np.testing.assert_allclose(answer.overlay, 255 * overlay, atol=1)
    assert vit.has_attention and np.ptp(answer.overlay) > 50


def test_only_digits_get_the_form_of_mnist(digits):
    names = ["shirt", *"123456789"]
    clothes = Classifier(dataclasses.replace(digits.predictor, label_names=names))
    ink = np.zeros((280, 280))
    ink[:140] = 1.0  # the upper half
    assert clothes.can_draw and not clothes.is_for_digits
    image = clothes.draw(ink).image[..., 0]
    assert image[:13].min() > 250 and image[15:].max() < 5
    with pytest.raises(UserError, match="the drawing is empty"):
        clothes.draw(np.zeros((280, 280)))


def test_a_slider_changes_the_decoded_image_and_the_walk_ends_at_the_two_images(aae):
    assert aae.reconstructs and not aae.needs_kind and aae.latent.size == 3
    assert all(low < -1 and high > 1 for low, high in aae.ranges()) and len(aae.ranges()) == 3
    state, (first, second) = aae.predictor.state, aae.test_images().gather([0, 1])["image"]
    z = np.asarray(aae.latent.encode(state, jnp.asarray(first[None]))[0])[0]
    again = aae.reconstruct(first)
    np.testing.assert_allclose(aae.decode(list(z)).astype(int), again, atol=1)
    assert np.abs(aae.decode(list(z + 2.0)).astype(int) - again).max() > 1
    np.testing.assert_allclose(aae.walk(first, second, [0.0])[0].astype(int), again, atol=1)
    np.testing.assert_allclose(aae.walk(first, second, [1.0])[0].astype(int), aae.reconstruct(second), atol=1)
    assert np.abs(aae.walk(first, second, [1.0])[0].astype(int) - again).max() > 1


def test_samples_depend_only_on_the_seed(aae):
    first, same, other = aae.sample(3), aae.sample(3), aae.sample(4)
    assert len(first) == SAMPLES and first[0].shape == aae.predictor.image_shape
    np.testing.assert_array_equal(first, same)
    assert np.abs(np.stack(first).astype(int) - other).max() > 1


def test_a_label_chooses_what_a_decoder_with_labels_draws(aae):
    """The class is the column of the image that is white."""

    def decode(state, z, y):
        return y[:, None, :, None] * np.ones((1, 3, 1, 1)) * 0.5 * z.sum()

    latent = Latent(2, 3, ("a", "b", "c"), lambda state, images: (np.ones((1, 2)), None), decode, aae.latent.sample)
    task = dataclasses.replace(aae.predictor.task, latent=latent, reconstruct=None)
    model = Autoencoder(dataclasses.replace(aae.predictor, task=task))
    assert model.needs_kind and not model.reconstructs
    assert model.decode([1.0, 1.0], 2)[0, :, 0].tolist() == [0, 0, 255]
    image = np.zeros(aae.predictor.image_shape, np.uint8)
    assert model.walk(image, image, [0.3], 1)[0][0, :, 0].tolist() == [0, 255, 0]
    with pytest.raises(UserError, match="must need no label to reconstruct an image"):
        model.reconstruct(image)


def test_names_and_messages_are_texts_and_not_html():
    image = np.zeros((2, 3, 1), np.uint8)
    hostile = "<img src=x onerror=alert(1)>"
    shown = html.answer(Answer(image, None, [(hostile, 0.75)])) + html.problem(hostile) + html.lead(hostile, [hostile])
    assert "<img src=x" not in shown and shown.count("&lt;img src=x") == 4 and "75.0%" in shown


def test_a_mistake_of_the_user_is_a_text_on_the_page():
    def fail(_):
        raise UserError("the drawing is empty. Draw a digit")

    assert answering(fail)("x") == '<p class="problem" role="alert">The drawing is empty. Draw a digit</p>'
    assert answering(lambda x: x)("fine") == "fine"
