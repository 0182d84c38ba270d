"""`--init-from`: a run starts from a file's parameters, with the architecture that the file describes."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import assert_same_trees, random_variables, run
from PIL import Image
from safetensors.numpy import load_file, save_file

from configs.base import Mesh, Optim
from configs.vit import PRESETS
from train import export, runs
from train.config.cli import parse
from train.data import open_source
from train.data.source import InMemorySource
from train.engine import init_from as pretrained
from train.engine.loop import fit, placed_params
from train.engine.sharding import make_mesh, state_sharding
from train.predict import load
from train.predict.__main__ import main as predict
from train.process.errors import UserError
from train.report.__main__ import main as report
from train.report.page import run_page
from train.run.weights import load_run
from train.vit import main, make_task
from w2jax import LSTM, ViT
from w2jax.convert import save, to_torch

# Both share only the classes and the patch size with the preset "tiny". `model` has options of other libraries.
usual = ViT(10, patch_size=7, embed_dim=12, depth=1, num_heads=2, mlp_dim=20)
model = usual.clone(activation="gelu_tanh", norm_eps=1e-4, pool="gap")
SMALL = [
    *("--data.train-split", "train[:40]", "--data.test-split", "test[:24]", "--mesh.data", "1"),
    *("--run.batch-size", "8", "--run.eval-every", "9", "--run.save-every", "2"),
]
UNKNOWN = "pixels in [-1, 1] (--normalize)"
RUN = ["--run.steps", "4", "--run.log-every", "3", "--optim.ema", "0.9", "--run.dir"]
UNTOLD = [
    "--model.num-heads",
    "2",
    "--model.activation",
    "gelu_tanh",
    "--model.norm-eps",
    "1e-4",
    "--model.pool",
    "gap",
]


def written(path, module=model, size=(28, 28), channels=1, seed=0, dtype=np.float32, format=None):
    """Writes variables and the description of their module to a file, and returns the variables."""
    variables = random_variables(module, jnp.zeros((1, *size, channels)), seed=seed)
    variables = jax.tree.map(lambda x: x.astype(dtype), variables)
    save(path, module, variables, format)
    return variables


def parsed(path, *options):
    return parse("vit", PRESETS, ["tiny", "--init-from", str(path), *SMALL, *options], pretrained.resolve)


def nothing(shape=(28, 28, 1), classes=10):
    """Returns a source of images of this shape, from which no image is read."""
    return InMemorySource("images", "train", shape, classes, [], np.zeros(0), np.zeros(0))


def begun(config, source=None):
    """Returns the task, its first State, and the printed note."""
    task = make_task(config, nothing() if source is None else source)
    start = task.initial_params()
    return task, jax.jit(task.init)(start.params), start.note


def test_the_architecture_comes_from_the_file_and_the_rest_from_the_config(tmp_path):
    """Options that matter only in training come from the config."""
    written(tmp_path / "vit.safetensors")
    training = ["--model.dropout", "0.1", "--model.drop-path", "0.2", "--model.scan-layers"]
    config = parsed(tmp_path / "vit.safetensors", *training, "--model.num-classes", "4", "--model.depth", "1")
    assert config.model == model.clone(dropout=0.1, drop_path=0.2, scan_layers=True, num_classes=4)
    assert config.optim == PRESETS["tiny"].config.optim


def test_layers_are_stacked_if_the_config_scans_them(tmp_path):
    variables = written(tmp_path / "vit.safetensors", model.clone(depth=3))
    _, state, _ = begun(parsed(tmp_path / "vit.safetensors", "--model.scan-layers"))
    blocks = [variables["params"]["encoder"][f"block_{i}"] for i in range(3)]
    assert_same_trees(state.params["encoder"]["blocks"], jax.tree.map(lambda *x: jnp.stack(x), *blocks))


def test_options_that_tensors_do_not_show_come_from_the_user(tmp_path):
    """The model gives the outputs of the original."""
    variables = random_variables(model, jnp.zeros((1, 28, 28, 1)))
    save_file(to_torch(model, variables, "timm"), tmp_path / "vit.safetensors")
    config = parsed(tmp_path / "vit.safetensors", *UNTOLD)
    assert config.model == model
    source = open_source(config.data, "test[:24]")
    task, state, _ = begun(config, source)
    batch = source.gather(np.arange(24))
    logits, _ = run(model, variables, 2.0 * (batch["image"] / np.float32(255)) - 1.0)
    expected = -jax.nn.log_softmax(logits)[np.arange(24), batch["label"]]
    np.testing.assert_allclose(jax.jit(task.evaluate)(state, batch)["loss"], expected, rtol=1e-5)


def test_options_known_neither_from_tensors_nor_the_user_are_assumed_and_printed(tmp_path):
    save_file(to_torch(usual, random_variables(usual, jnp.zeros((1, 28, 28, 1))), "timm"), tmp_path / "vit.safetensors")
    config = parsed(tmp_path / "vit.safetensors")
    assert config.model == usual
    note = make_task(config, nothing()).initial_params().note
    assert "(timm)" in note
    assert note.endswith(
        "; not stated in the file, set from your options or usual values: "
        "num_heads 2, activation gelu, norm_eps 1e-06, pool cls"
    )


@pytest.mark.parametrize("described", [True, False])
def test_options_that_contradict_the_file_are_refused_with_both_values(described, tmp_path):
    path = tmp_path / "vit.safetensors"
    variables = written(path)
    if not described:
        save_file(to_torch(model, variables, "timm"), path)
    with pytest.raises(UserError) as error:
        parsed(path, "--model.num-heads", "4", "--model.depth", "5", "--model.mlp-dim", "9")
    heads = "--model.num-heads must be 2, got 4; " * described  # tensors alone tell nothing of the heads
    assert str(error.value).startswith(
        f"--model.depth must be 1, got 5; {heads}--model.mlp-dim must be 20, got 9: --init-from {path} sets"
    )


def test_an_option_that_is_typed_with_the_presets_value_must_match_the_file_too(tmp_path):
    written(tmp_path / "vit.safetensors")
    depth = str(PRESETS["tiny"].config.model.depth)
    with pytest.raises(UserError, match=rf"^--model.depth must be 1, got {depth}: --init-from .* sets"):
        parsed(tmp_path / "vit.safetensors", "--model.depth", depth)


def test_the_classifier_that_replaces_a_projection_has_a_bias(tmp_path):
    """A projection of CLIP has no bias, and its outputs are no classes."""
    written(tmp_path / "vit.safetensors", model.clone(head_bias=False), format="torch")
    config = parsed(tmp_path / "vit.safetensors")
    assert config.model == model
    _, state, note = begun(config)
    assert state.params["head"]["bias"].shape == (10,) and not np.asarray(state.params["head"]["kernel"]).any()
    assert "; new head with 10 classes (that of the file has no bias)" in note


def test_a_classifier_of_several_layers_is_replaced(tmp_path):
    """A replaced head, Sequential(Linear, ReLU, Linear), in timm's names."""
    path = tmp_path / "vit.safetensors"
    written(path, usual, format="timm")
    tensors = load_file(path)
    first, second = tensors.pop("head.weight"), tensors.pop("head.bias")
    tensors |= {"head.0.weight": first, "head.0.bias": second, "head.2.weight": first[:, :10], "head.2.bias": second}
    save_file(tensors, path)
    _, state, note = begun(parsed(path, "--model.num-heads", "2"))
    assert state.params["head"]["kernel"].shape == (12, 10) and not np.asarray(state.params["head"]["kernel"]).any()
    assert (
        "left out a replaced classifier: head.0." in note and "new head with 10 classes (the file has no head)" in note
    )


def test_a_config_made_in_python_must_match_the_file(tmp_path):
    written(tmp_path / "vit.safetensors")
    config = dataclasses.replace(PRESETS["tiny"].config, init_from=str(tmp_path / "vit.safetensors"))
    with pytest.raises(UserError, match=r"--model.depth must be 1, got 2.*: --init-from .*vit\.safetensors sets"):
        make_task(config, nothing()).initial_params()
    make_task(dataclasses.replace(config, model=model), nothing()).initial_params()


def test_parameters_are_the_files_bit_for_bit(tmp_path):
    """Except for a new head and resized positions."""
    path, module = tmp_path / "vit.safetensors", model.clone(num_classes=7, pool="cls", pre_logits_dim=5)
    params = dict(written(path, module, size=(42, 42), format="google")["params"])
    _, state, note = begun(parsed(path))
    count = sum(x.size for x in jax.tree.leaves(params))
    assert note == (
        f"initialized from {path} (w2jax): {count:,} parameters; {UNKNOWN}; position embeddings 6×6, resized to 4×4; "
        "new head with 10 classes (the file has 7)"
    )
    assert params.pop("head")["kernel"].shape == (5, 7)
    params["positions"] = module.resize({"params": params}, (42, 42), (28, 28))["params"]["positions"]
    head = state.params.pop("head")
    assert_same_trees(state.params, params)
    assert_same_trees(head, {"kernel": jnp.zeros((5, 10)), "bias": jnp.zeros(10)})


def test_a_head_with_the_same_number_of_classes_is_kept(tmp_path):
    variables = written(tmp_path / "vit.safetensors", usual)
    _, state, note = begun(parsed(tmp_path / "vit.safetensors"))
    assert_same_trees(state.params, variables["params"])
    assert note.endswith("; position embeddings 4×4; head with 10 classes")


def test_the_average_starts_as_a_copy_and_the_optimizer_new(tmp_path):
    written(tmp_path / "vit.safetensors")
    task, state, _ = begun(parsed(tmp_path / "vit.safetensors", "--optim.ema", "0.9"))
    assert_same_trees(state.ema, state.params)
    assert_same_trees(state.opt_state, jax.jit(task.init)().opt_state)


def test_half_precision_is_trained_in_float32(tmp_path):
    halves = written(tmp_path / "vit.safetensors", dtype=jnp.bfloat16)
    _, state, _ = begun(parsed(tmp_path / "vit.safetensors"))
    assert_same_trees(state.params, jax.tree.map(lambda x: x.astype(jnp.float32), halves["params"]))


def test_pretrained_parameters_are_placed_like_the_state(tmp_path):
    """They are an argument of init, not constants of its program."""
    written(tmp_path / "vit.safetensors")
    task = make_task(parsed(tmp_path / "vit.safetensors"), nothing())
    params = task.initial_params().params
    doubled = jax.tree.map(lambda x: 2 * x, params)
    assert_same_trees(jax.jit(task.init)(doubled).params, doubled)
    places = state_sharding(make_mesh(Mesh(1, 1, 2)), jax.eval_shape(task.init))
    placed = placed_params(params, places)
    assert jax.tree.map(lambda x: x.sharding, placed) == places.params
    assert placed["encoder"]["block_0"]["mlp"]["fc1"]["kernel"].addressable_shards[0].data.shape == (12, 10)


@pytest.mark.parametrize(
    ("size", "channels", "shape", "message"),
    [
        (
            (28, 28),
            3,
            (28, 28, 4),
            r"needs images with 3 channels, but dataset images has 4. Only gray \(1\) and RGB",
        ),
        (
            (28, 28),
            4,
            (28, 28, 1),
            r"needs images with 4 channels, but dataset images has 1. Only gray \(1\) and RGB",
        ),
        ((28, 28), 1, (30, 40, 1), r"divisible by 7, the patch size of .*, got 30 40\. Add --data.image-size 28 42"),
        ((14, 21), 1, (28, 28, 1), r"must give 6 patches, got 4×4\. The 6 position .* are not those of a square image"),
    ],
    ids=lambda x: str(x),
)
def test_image_sizes_that_do_not_fit_the_model_are_refused(size, channels, shape, message, tmp_path):
    written(tmp_path / "vit.safetensors", size=size, channels=channels)
    with pytest.raises(UserError, match=message):
        make_task(parsed(tmp_path / "vit.safetensors"), nothing(shape)).initial_params()


def test_patches_that_are_not_square_keep_their_shape_and_their_positions_are_resized(tmp_path):
    narrow = usual.clone(patch_size=(7, 4))
    variables = written(tmp_path / "vit.safetensors", narrow)
    config = parsed(tmp_path / "vit.safetensors", "--model.patch-size", "7", "4")
    assert config.model.patch_size == (7, 4)
    _, state, note = begun(config, nothing((42, 20, 1)))
    assert "position embeddings 4×7, resized to 6×5" in note
    expected = narrow.resize(variables, (28, 28), (42, 20))["params"]["positions"]
    np.testing.assert_allclose(state.params["positions"], expected, rtol=1e-6)
    with pytest.raises(UserError, match=r"must be divisible by 7 4, the patch size .* Add --data.image-size 28 32"):
        begun(config, nothing((28, 31, 1)))
    with pytest.raises(UserError, match=r"--model.patch-size must be \(7, 4\), got 4"):
        parsed(tmp_path / "vit.safetensors", "--model.patch-size", "4")


GRAY = "patch embedding summed over R, G and B for gray images"
RGB = "patch embedding divided by 3 and repeated, so that it reads the mean of R, G and B"


@pytest.mark.parametrize(("reads", "told"), [(3, GRAY), (1, RGB)])
def test_a_model_of_color_images_starts_on_gray_images_and_a_gray_one_on_color_images(reads, told, tmp_path):
    """The logits are those of the original model for images with repeated or averaged channels."""
    variables, channels = written(tmp_path / "vit.safetensors", usual, channels=reads), 4 - reads
    _, state, note = begun(parsed(tmp_path / "vit.safetensors"), nothing((28, 28, channels)))
    images = np.random.default_rng(0).uniform(-1, 1, (5, 28, 28, channels)).astype(np.float32)
    as_read = np.repeat(images, 3, axis=-1) if reads == 3 else images.mean(axis=-1, keepdims=True)
    logits, _ = run(usual, {"params": state.params}, images)
    expected, _ = run(usual, variables, as_read)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    assert f"parameters; {UNKNOWN}; {told}; position" in note


def test_a_changed_patch_embedding_is_named_at_the_start_and_by_predict_and_the_report(tmp_path, capsys):
    written(tmp_path / "vit.safetensors", channels=3)
    folder = tmp_path / "run"
    options = [*RUN, str(folder), "--run.compilation-cache", "off"]
    fit(parsed(tmp_path / "vit.safetensors", *options), make_task)
    assert f"; {GRAY}; " in capsys.readouterr().out
    shutil.rmtree(folder / "checkpoints" / "4")
    fit(parsed(tmp_path / "vit.safetensors", *options), make_task)
    assert "Resumed from step 2 " in capsys.readouterr().out
    assert load(folder).note == f"the moving average (EMA) of the parameters of step 4; {GRAY}"
    assert f"<th>initial weights<td>{GRAY}<" in run_page(folder)


def test_nonsquare_positions_are_kept_for_images_with_as_many_patches(tmp_path):
    params = written(tmp_path / "vit.safetensors", size=(14, 21))["params"]
    start = make_task(parsed(tmp_path / "vit.safetensors"), nothing((14, 21, 1))).initial_params()
    np.testing.assert_array_equal(start.params["positions"], params["positions"])
    assert "; position embeddings 2×3;" in start.note


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns a folder with a file and "a", a run that started from it, and the run's last State."""
    folder = tmp_path_factory.mktemp("whole")
    written(folder / "vit.safetensors", size=(42, 42))
    return folder, fit(parsed(folder / "vit.safetensors", *RUN, str(folder / "a")), make_task)


def without_weights(whole, tmp_path):
    """Returns the path of weights that are gone, a copy of the run that started from them, and the run's last State."""
    folder, state = whole
    run = shutil.copytree(folder / "a", tmp_path / "moved" / "run")
    gone = tmp_path / "gone" / "vit.safetensors"
    tree = json.loads((run / "config.json").read_text())
    assert tree["init_from"] == str(folder / "vit.safetensors")
    tree["run"]["dir"] = "runs/before-it-was-moved"
    (run / "config.json").write_text(json.dumps(tree | {"init_from": str(gone)}))
    return gone, run, state


def test_a_run_resumes_without_the_weights_that_it_started_from(whole, tmp_path, capsys):
    """It equals an uninterrupted run."""
    gone, run, state = without_weights(whole, tmp_path)
    shutil.rmtree(run / "checkpoints" / "4")
    assert_same_trees(fit(parsed(gone, *RUN, str(run)), make_task), state)
    assert (run / "metrics.jsonl").read_bytes() == (whole[0] / "a" / "metrics.jsonl").read_bytes()
    out = capsys.readouterr().out
    assert "Resumed from step 2 " in out and "initialized from" not in out
    extended = ["--run.steps", "6", "--run.extend"]
    assert int(fit(parsed(gone, *RUN, str(run), *extended), make_task).step) == 6
    for option, told in (("--model.embed-dim=16", "model.embed_dim was 12, now 16"), ("--normalize=clip", "now clip")):
        with pytest.raises(UserError, match=f"contains a run with other options: .*{told}"):
            fit(parsed(gone, *RUN, str(run), *extended, option), make_task)


def test_a_run_without_a_checkpoint_needs_its_weights(whole, tmp_path):
    gone, run, _ = without_weights(whole, tmp_path)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match=r"gone/vit\.safetensors does not exist"):
        parsed(gone, *RUN, str(run))


def test_trained_models_are_used_without_the_weights_that_they_started_from(whole, tmp_path, monkeypatch, capsys):
    """Also after the run folder was moved, and from another folder."""
    _, run, _ = without_weights(whole, tmp_path)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.eye(28, dtype=np.uint8)).save("digit.png")
    assert predict([str(run), "digit.png", "--json"]) == 0
    for options in ([], ["--format", "timm"]):
        export.main([str(run), *options, "--out", "out"])
    for options in ([], ["--checkpoint", "last"]):
        report([str(run), *options, "--out", "report.html"])
    assert "accuracy" in Path("report.html").read_text()
    capsys.readouterr()
    runs.main([str(run.parent), "--json"])
    assert json.loads(capsys.readouterr().out)["state"] == "finished"
    assert parse("vit", PRESETS, ["tiny", "--init-from", str(run)], pretrained.resolve).model.embed_dim == 12


def command(monkeypatch, *arguments):
    """Runs `python -m train.vit tiny` in this process."""
    monkeypatch.setattr("sys.argv", ["vit", "tiny", *SMALL, *map(str, arguments)])
    return main()


def test_a_run_starts_from_the_averaged_parameters_of_another(whole, tmp_path, monkeypatch, capsys):
    folder, state = whole
    options = ["--optim.learning-rate", "0", "--run.steps", "1", "--mesh.tensor", "2", "--run.dir", tmp_path / "run"]
    assert not command(monkeypatch, *options, "--init-from", folder / "a")
    told = f"initialized from {folder / 'a'} (a run folder): the moving average (EMA) of the parameters of step 4; "
    assert told in capsys.readouterr().out
    module, variables, _ = load_run(tmp_path / "run")
    assert module == model
    assert_same_trees(variables, {"params": state.ema})
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (saved["init_from"], saved["model"]["norm_eps"]) == (str(folder / "a"), 1e-4)


def test_the_head_of_a_run_with_other_class_names_is_not_kept(whole, tmp_path, monkeypatch, capsys):
    """The same number of classes is not enough."""
    folder, state = whole
    run = shutil.copytree(folder / "a", tmp_path / "a")
    images = json.loads((run / "images.json").read_text())
    (run / "images.json").write_text(json.dumps(images | {"label_names": list("abcdefghij")}))
    options = ["--optim.learning-rate", "0", "--run.steps", "1", "--run.dir", tmp_path / "run"]
    assert not command(monkeypatch, *options, "--init-from", run)
    told = capsys.readouterr().out
    assert f"new head with 10 classes (the classes of {run} have other names: a, b, c, d, e and others)" in told
    _, variables, _ = load_run(tmp_path / "run")
    assert not variables["params"]["head"]["kernel"].any() and state.ema["head"]["kernel"].any()
    assert_same_trees(variables["params"]["encoder"], state.ema["encoder"])


def test_an_error_names_the_file_before_a_run_folder_exists(tmp_path, monkeypatch):
    lstm, broken, foreign = (tmp_path / f"{name}.safetensors" for name in ("lstm", "broken", "foreign"))
    save(lstm, LSTM(3), random_variables(LSTM(3), jnp.zeros((1, 1, 2))))
    tensors = to_torch(model, random_variables(model, jnp.zeros((1, 28, 28, 1))), "timm")
    tensors["blocks.0.extra"] = tensors.pop("blocks.0.norm2.bias")
    save_file(tensors, broken)
    save_file({"a": np.zeros(3, np.float32)}, foreign)
    for path, words in (
        (tmp_path / "none.safetensors", ["does not exist"]),
        (lstm, ["must contain a ViT, got a LSTM"]),
        (foreign, ["must be those of a ViT in one of the formats "]),
        (broken, ["blocks.0.extra", "blocks.0.norm2.bias"]),
        (tmp_path, ["must contain model.safetensors.index.json, "]),
    ):
        with pytest.raises(UserError) as error:
            command(monkeypatch, "--init-from", path, "--run.dir", tmp_path / "run")
        message = str(error.value)
        assert str(path) in message and all(word in message for word in words)
        assert not (tmp_path / "run").exists()


def test_without_a_file_nothing_is_read_and_all_parameters_are_new():
    config = parse("vit", PRESETS, ["tiny"], pretrained.resolve)
    assert config.model == PRESETS["tiny"].config.model and make_task(config, nothing()).initial_params is None
    assert config.optim == Optim(learning_rate=3e-3)
