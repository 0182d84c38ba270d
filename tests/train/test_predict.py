"""A trained run as a function of images: it gives the evaluation's numbers, and reads any image as in training."""

import dataclasses
import importlib
import json
import os
import re
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from PIL import Image
from runs import small, with_run

from configs.base import Mesh
from train.data import open_source
from train.engine.loop import fit
from train.predict import load
from train.predict.__main__ import Options, check_options, main
from train.predict.output import print_classes
from train.process.errors import UserError
from train.run.folder import read_config
from train.vit import make_task


def trained(task, folder, **model):
    """Returns the config of a run of six steps. Classifiers take large steps, because their heads start at zero."""
    tiny = importlib.import_module(f"configs.{task}").PRESETS["tiny"].config
    large = (
        {}
        if task == "aae"
        else {"optim": dataclasses.replace(tiny.optim, learning_rate=0.02, warmup_fraction=0.0, ema=None)}
    )
    config = dataclasses.replace(
        tiny,
        **large,
        model=tiny.model.clone(**model),
        data=dataclasses.replace(tiny.data, train_split="train[:40]", test_split="test[:24]"),
        run=dataclasses.replace(tiny.run, steps=6, batch_size=10, eval_every=6, save_every=6, dir=str(folder)),
        mesh=Mesh(1, 1, 1),
    )
    fit(config, importlib.import_module(f"train.{task}").make_task)
    return config


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return trained("vit", tmp_path_factory.mktemp("vit") / "run", embed_dim=8, mlp_dim=8, depth=1)


@pytest.fixture(scope="module")
def digits(vit):
    """Returns (test images [24, 28, 28, 1], their labels)."""
    found = open_source(vit.data, vit.data.test_split).gather(np.arange(24))
    return found["image"], found["label"]


@pytest.fixture
def files(digits, tmp_path):
    """Writes the first digit in five formats that show the same digit, and a second digit."""
    image = digits[0][0, ..., 0]
    gray = Image.fromarray(image)
    gray.save(tmp_path / "a_gray.png")
    gray.convert("RGBA").save(tmp_path / "b_rgba.png")
    gray.convert("P").save(tmp_path / "c_palette.gif")
    Image.fromarray(image.astype(np.uint16) * 257).save(tmp_path / "d_sixteen_bits.png")
    gray.resize((84, 84), Image.Resampling.NEAREST).save(tmp_path / "e_larger.bmp")
    Image.fromarray(digits[0][1, ..., 0]).save(tmp_path / "f_other.png")
    return tmp_path


def last_line(config):
    return json.loads(Path(config.run.dir, "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize(
    ("task", "model"), [("lstm", {"hidden_size": 8}), ("mha", {"embed_dim": 8, "mlp_dim": 8, "depth": 1}), ("vit", {})]
)
def test_predictions_have_the_accuracy_and_loss_of_the_runs_last_row(task, model, vit, digits, tmp_path):
    config = vit if task == "vit" else trained(task, tmp_path / "run", **model)
    images, labels = digits
    predictor = load(config.run.dir)
    probabilities = predictor(images)
    assert predictor.label_names == list("0123456789")
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert np.ptp(probabilities) > 0.05
    assert last_line(config)["accuracy"] == pytest.approx((probabilities.argmax(axis=1) == labels).mean())
    loss = -np.log(probabilities[np.arange(24), labels]).mean()
    assert last_line(config)["loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_reconstructions_have_the_squared_error_of_the_runs_last_row(tmp_path):
    config = trained("aae", tmp_path / "run")
    predictor = load(config.run.dir)
    images = open_source(config.data, config.data.test_split).gather(np.arange(24))["image"]  # [24, 32, 32, 1]
    again = predictor(images)
    assert again.shape == images.shape and 0 <= again.min() < again.max() <= 1
    error = np.square(2 * (again - images / 255)).mean()  # the decoder's range is [-1, 1]
    assert last_line(config)["reconstruction"] == pytest.approx(error, rel=1e-4)
    samples = predictor.sample(7)
    assert samples.shape == (7, 32, 32, 1) and np.ptp(samples, axis=0).max() > 0.01
    np.testing.assert_array_equal(samples, predictor.sample(7))
    digit = tmp_path / "digit.png"
    Image.fromarray(images[0, ..., 0]).save(digit)
    with pytest.raises(UserError, match="--json needs a classifier, got an AAE"):
        main([config.run.dir, str(digit), "--json", "--out", str(tmp_path / "again.png")])
    with pytest.raises(
        UserError, match=r"--sample does not use input images, got .*digit\.png\. Leave out the images or --sample"
    ):
        main([config.run.dir, str(digit), "--sample", "3", "--out", str(tmp_path / "again.png")])
    main([config.run.dir, str(digit), "--out", str(tmp_path / "again.png")])
    shown = np.asarray(Image.open(tmp_path / "again.png"))
    zoom = shown.shape[1] // 32
    np.testing.assert_array_equal(shown[: 32 * zoom : zoom, ::zoom], images[0, ..., 0])
    np.testing.assert_allclose(shown[32 * zoom :: zoom, ::zoom] / 255, again[0, ..., 0], atol=0.51 / 255)


def test_a_digit_is_the_same_digit_in_any_mode_depth_and_format(vit, files, capsys):
    main([vit.run.dir, str(files), "--json", "--top-k", "10"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(row["image"]).name[0] for row in rows] == list("abcdef")
    values = [{x["label"]: x["probability"] for x in row["top"]} for row in rows]
    for row, value in zip(rows, values, strict=True):
        assert row["probability"] == max(value.values()) == value[row["label"]]
        assert len(value) == 10
    for same in values[1:4]:
        assert same == pytest.approx(values[0], rel=1e-5)
    assert values[4] == pytest.approx(values[0], abs=0.05)  # enlarged, and reduced when it is read
    assert values[5] != pytest.approx(values[0], rel=1e-5)


def test_the_table_has_top_k_classes_and_each_files_name(vit, files, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    (files / "a_gray.png").rename(files / "zwölf 数.png")
    (files / "f_other.png").rename(files / "other\x1b[2J.png")
    main([vit.run.dir, str(files), "--top-k", "2"])
    printed = capsys.readouterr().out
    assert " 2. " in printed and " 3. " not in printed
    assert "/zwölf 数.png " in printed
    assert "\x1b" not in printed and r"other\x1b[2J" in printed


@pytest.mark.parametrize("columns", [40, 80])
def test_a_narrow_terminal_shows_every_character_of_the_names(columns, vit, files, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    names = [files / f"{'holiday-' * 12}{end}.png" for end in ("1", "2")]
    labels = ["tench, Tinca tinca", "electric ray, crampfish, numbfish, torpedo", "hen"]
    predictor = dataclasses.replace(load(vit.run.dir), label_names=labels, note="the note")
    print_classes(predictor, names, np.array([[0.2, 0.5, 0.3]] * 2), None, False)
    printed = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)  # bold and italics
    assert max(map(len, printed.splitlines())) <= columns
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    shown, first, *_ = ("".join(column).replace(" ", "") for column in zip(*cells, strict=True))
    assert shown == "".join(map(str, names)).replace(" ", "")
    assert first == f"{labels[1]}50.0%".replace(" ", "") * 2


def test_in_a_pipe_each_image_has_one_line(vit, files, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    main([vit.run.dir, str(files)])
    assert sum(f"{files}/" in line for line in capsys.readouterr().out.splitlines()) == 6


@pytest.mark.parametrize("link", [False, True])
def test_a_picture_does_not_replace_an_input_image(link, vit, files):
    image = files / "a_gray.png"
    out = files / "out.png" if link else image
    if link:
        out.symlink_to(image)
    before = image.read_bytes()
    with pytest.raises(UserError, match=r"^--attention must not be one of the images, got .*png\. Choose"):
        main([vit.run.dir, str(image), "--attention", str(out)])
    assert image.read_bytes() == before


def test_a_run_of_two_classes_prints_both_and_refuses_three(vit, files, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    predictor = dataclasses.replace(load(vit.run.dir), label_names=["cat", "dog"])
    options = Options(Path("run"), (files / "a_gray.png",))
    check_options(options, predictor)
    print_classes(predictor, [files / "a_gray.png"], np.array([[0.25, 0.75]]), None, False)
    printed = capsys.readouterr().out
    assert " 2. " in printed and " 3. " not in printed and printed.index("dog  75.0%") < printed.index("cat  25.0%")
    with pytest.raises(UserError, match="--top-k must be from 1 to 2, the number of classes, got 3"):
        check_options(dataclasses.replace(options, top_k=3), predictor)


def test_a_checkpoint_is_chosen_by_name_and_the_choice_is_printed(tmp_path, files, capsys, monkeypatch):
    """The run's only evaluations are at steps 2 and 4, and the accuracy of step 2 is made the better one."""
    tiny = small(tmp_path / "run", workers=0)
    config = with_run(tiny, tmp_path / "run", steps=4, save_every=1, eval_every=2)
    fit(config, make_task)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["split"] == "test" and line["step"] == 4:
            line["accuracy"] = -1.0
    (tmp_path / "run/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setenv("COLUMNS", "300")
    capsys.readouterr()
    rows = {}
    for name, step in (("best", 2), ("2", 2), ("3", 3), ("last", 4)):
        main([config.run.dir, str(files), "--json", "--checkpoint", name])
        rows[name], note = capsys.readouterr()
        assert note.startswith(f"read the parameters of step {step}")
    assert rows["best"] == rows["2"] and len(set(rows.values())) == 3
    main([config.run.dir, str(files), "--checkpoint", "best"])
    assert "the parameters of step 2 (best accuracy, 0." in capsys.readouterr().out
    with pytest.raises(UserError, match=r"^--checkpoint must be the step of a checkpoint in .* \(2, 3, 4\), got 1$"):
        main([config.run.dir, str(files), "--checkpoint", "1"])


def test_by_default_three_classes_are_printed(vit, files, capsys):
    assert main([vit.run.dir, str(files / "a_gray.png"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["top"]) == 3


def test_bad_files_are_listed_and_the_others_are_answered(vit, files, capsys):
    """The exit status is 1, or 0 with --skip-corrupt."""
    (files / "a_text.png").write_text("text")
    (files / "b_cut.gif").write_bytes((files / "c_palette.gif").read_bytes()[:60])
    (files / "broken.png").symlink_to(files / "nothing.png")
    (files / "g_folder.png").mkdir()
    (files / "phone.heic").write_text("")
    (files / "elsewhere").mkdir()
    (files / "f_other.png").rename(files / "elsewhere/f_other.png")
    (files / "photos").mkdir()
    (files / "photos/linked").symlink_to(files / "elsewhere")
    places = [str(place) for place in (*sorted(files.glob("*.*")), files / "photos", files / "absent.png")]
    assert main([vit.run.dir, *places, "--json"]) == 1
    told = capsys.readouterr()
    names = ["a_gray.png", "b_rgba.png", "c_palette.gif", "d_sixteen_bits.png", "e_larger.bmp", "f_other.png"]
    assert [Path(json.loads(line)["image"]).name for line in told.out.splitlines()] == names
    bad = ["g_folder.png contains no", "broken.png does not exist", "absent.png does not exist", "a_text.png cannot be"]
    bad += ["b_cut.gif cannot be", "phone.heic cannot be"]
    checkpoint, *lines = told.err.splitlines()
    assert checkpoint == "read the parameters of step 6"
    assert len(lines) == len(bad) and all(line.startswith(f"not read: {files}/") for line in lines)
    assert all(f"/{part}" in told.err for part in bad)
    assert main([vit.run.dir, *places, "--json", "--skip-corrupt"]) == 0
    assert capsys.readouterr().out == told.out


def test_a_folder_gives_its_images_and_names_the_others(vit, files, capsys):
    (files / "a_text.png").write_text("text")
    (files / "phone.heic").write_text("")
    (files / "g_folder.png").mkdir()
    for name in ("._a_gray.png", ".ipynb_checkpoints/a_gray.png", "__MACOSX/a_gray.png", "@eaDir/a_gray.png"):
        (files / name).parent.mkdir(exist_ok=True)
        (files / name).write_bytes((files / "a_gray.png").read_bytes())
    (files / "b_circle").symlink_to(files)
    assert main([vit.run.dir, str(files), "--json"]) == 1
    told = capsys.readouterr()
    assert [Path(json.loads(line)["image"]).name[0] for line in told.out.splitlines()] == list("abcdef")
    _, heic, link, hidden, text = told.err.splitlines()
    assert heic.startswith("left out, HEIC and AVIF are not read, convert them to JPEG ")
    assert link.startswith("left out, a link to a folder that is listed already: ")
    assert hidden.startswith("left out, hidden: 4 .png, such as ")
    assert text.startswith(f"not read: {files}/a_text.png cannot be read as an image")


def test_if_no_image_can_be_read_each_is_listed(vit, tmp_path, capsys):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("text")
    with pytest.raises(UserError, match="none of the 2 images can be read"):
        main([vit.run.dir, str(tmp_path), "--skip-corrupt"])
    assert capsys.readouterr().err.count("not read: ") == 2


def test_the_attention_image_is_red_where_the_vit_attends(vit, files, digits):
    """It shows each image above the same image with the report's attention."""
    many = files / "many"
    many.mkdir()
    for number, image in enumerate(digits[0][:12]):
        Image.fromarray(image[..., 0]).save(many / f"{number:02}.png")
    main([vit.run.dir, str(many), "--attention", str(files / "looked.png")])
    shown = np.asarray(Image.open(files / "looked.png"))
    zoom = shown.shape[1] // 280  # ten in a row
    cells = rearrange(shown[::zoom, ::zoom] / 255, "(r k h) (n w) c -> k (r n) h w c", h=28, k=2, n=10)
    np.testing.assert_allclose(cells[0, :12], np.repeat(digits[0][:12], 3, axis=-1) / 255, atol=1e-6)
    assert not cells[:, 12:].any()
    # Where the digit is black, the color shows how much each head attends there: the mean of the report's picture.
    config = dataclasses.replace(vit, data=dataclasses.replace(vit.data, test_split="test[:12]"))
    source = open_source(config.data, "test[:12]")
    report = make_task(config, source).figures(load(vit.run.dir).state, {"image": jnp.asarray(digits[0][:12])})
    expected = np.asarray(report["attention"].cells)[:, 1:].mean(axis=1)
    assert np.ptp(expected[..., 0][digits[0][:12, ..., 0] == 0]) > 0.05
    np.testing.assert_allclose(cells[1, :12], expected, atol=0.003)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{none}", "{image}"], "does not exist. Pass a run folder"),
        (["{vit}"], "images are missing. Add image files or folders after RUN_OR_WEIGHTS"),
        (["{vit}", "{none}"], r"none does not exist\. Pass images"),
        (["{vit}", "{empty}"], r"empty contains no image\. Pass images"),
        (["{vit}", "{text}"], "text.png cannot be read as an image"),
        (["{vit}", "{image}", "--top-k", "11"], "--top-k must be from 1 to 10, the number of classes, got 11"),
        (["{vit}", "--sample", "3", "--out", "x.png"], "--sample needs a generative model"),
        (["{vit}", "{image}", "--out", "x.png"], "--out needs an autoencoder, such as a run of train.aae, got a ViT"),
        (["{vit}", "--sample", "3"], "--sample needs a generative model, such as a run of train.aae, got a ViT"),
        (["{vit}", "{image}", "--sample", "3"], "--sample needs a generative model"),
        (
            ["{vit}", "{image}", "--num-heads", "2"],
            "--num-heads must be left out for a run, .*They are for weights",
        ),
        (["{fresh}", "{image}"], "has no checkpoint yet"),
        (["{older}", "{image}"], "images.json must describe the images"),
        (["{no_model}", "{image}"], r"config.json is not a config of configs\.vit"),
        (["{no_run}", "{image}"], r"config.json is not a config of configs\.vit"),
        (["{list}", "{image}"], "config.json must be a JSON object"),
    ],
)
def test_an_error_is_one_line(arguments, told, vit, files, tmp_path):
    places = {"none": tmp_path / "none", "vit": vit.run.dir, "image": files / "a_gray.png", "empty": tmp_path / "empty"}
    places["empty"].mkdir()
    places["text"] = tmp_path / "text.png"
    places["text"].write_text("no image")
    for name, kept in (("fresh", ("config.json", "images.json")), ("older", ("config.json",))):
        places[name] = tmp_path / name
        places[name].mkdir()
        for file in kept:
            (places[name] / file).write_bytes(Path(vit.run.dir, file).read_bytes())
    whole = json.loads(Path(vit.run.dir, "config.json").read_text())
    for name, tree in (("no_model", {**whole, "model": 3}), ("no_run", {**whole, "run": [3]}), ("list", [3])):
        places[name] = tmp_path / name
        places[name].mkdir()
        (places[name] / "config.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=told) as error:
        main([argument.format(**places) for argument in arguments])
    assert "\n" not in str(error.value)


def test_a_predictor_compiles_only_once_for_a_number_of_images(vit, digits):
    predictor, compiled = load(vit.run.dir), []

    def count(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    first = predictor(digits[0][:3])
    jax.monitoring.register_event_duration_secs_listener(count)  # It stays: jax 0.7 cannot remove it.
    assert np.array_equal(predictor(digits[0][:3]), first) and not compiled
    predictor(digits[0][:5])
    assert compiled


def test_images_of_another_shape_or_type_are_refused(vit, digits):
    predictor = load(vit.run.dir)
    for wrong in (digits[0][:, :27], digits[0].astype(np.float32), digits[0][:0]):
        with pytest.raises(ValueError, match="images must be uint8"):
            predictor(wrong)


@pytest.mark.parametrize("task", ["aae", "lstm", "mha", "vit"])
def test_every_presets_config_is_restored_from_its_json(task, tmp_path):
    from train.config.tree import config_to_tree

    presets = importlib.import_module(f"configs.{task}").PRESETS
    for config in (preset.config for preset in presets.values()):
        (tmp_path / "config.json").write_text(json.dumps(config_to_tree(config)))
        assert read_config(tmp_path, type(config)) == config


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("config.json", {"model": {"depth": 3}}, "the parameters must be those of the model in config.json, but "),
        ("config.json", {"model": {"embed_dim": 16}}, "the parameters must be those of the model in config.json, but "),
        ("config.json", {"model": {"num_heads": 3}}, "must describe a model that can be built: "),
        ("images.json", {"image_shape": [35, 28, 1]}, "params/positions must be float32 [1, 21, 8], got float32 "),
        ("images.json", {"image_shape": [10**6, 10**6, 1]}, "image_shape must be [height, width, channels], got ["),
        ("images.json", {"image_shape": [2**14 + 1, 28, 1]}, "image_shape must be [height, width, channels], got ["),
        ("config.json", {"model": {"depth": 2**31 - 1}}, "depth in config.json must be at most "),
        ("config.json", {"task": 3}, "must be a run of one of the tasks"),
        ("images.json", {"image_shape": [28, 28, 2]}, "image_shape must be [height, width, channels], got ["),
        ("images.json", {"image_shape": None}, "image_shape must be [height, width, channels], got None"),
        ("images.json", {"label_names": [1, 2]}, "label_names must be a list of names, got [1, 2]"),
    ],
)
def test_a_folder_whose_files_contradict_each_other_is_refused(file, change, told, vit, files, tmp_path):
    run = Path(shutil.copytree(vit.run.dir, tmp_path / "run"))
    content = json.loads((run / file).read_text())
    for name, value in change.items():
        content[name] = content[name] | value if isinstance(value, dict) else value
    (run / file).write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        load(run)
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "images.json"])
@pytest.mark.parametrize("kind", ["pipe", "link", "device", "nested"])
def test_files_that_cannot_be_read_safely_are_refused(name, kind, vit, tmp_path):
    run = Path(shutil.copytree(vit.run.dir, tmp_path / "run"))
    path = run / name
    path.rename(tmp_path / "moved")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "nested":
        path.write_text('{"model":' * 900 + "1" + "}" * 900)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else tmp_path / "moved")
    with pytest.raises(UserError, match=name) as error:
        load(run)
    assert "\n" not in str(error.value)


def test_a_picture_is_not_written_through_a_link_in_the_run_folder(vit, files, tmp_path):
    run = shutil.copytree(vit.run.dir, tmp_path / "run")
    (tmp_path / "outside").mkdir()
    (run / "linked").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match=r"linked must be a folder inside .*, got a symbolic link"):
        main([str(run), str(files / "a_gray.png"), "--attention", str(run / "linked" / "a.png")])
    assert not any((tmp_path / "outside").iterdir())
