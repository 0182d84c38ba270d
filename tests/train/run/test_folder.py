"""What a run folder rejects, and how it resumes older or interrupted runs."""

import dataclasses
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from configs import aae
from configs.vit import PRESETS
from train.aae import make_task as make_aae_task
from train.config.cli import parse
from train.config.tree import config_to_tree
from train.engine.loop import fit
from train.process.errors import UserError
from train.run.files import read_lines
from train.run.folder import ImageInfo, RunFolder, read_config
from train.run.record import read_record
from train.vit import make_task

TINY = PRESETS["tiny"].config


def config(folder, **run):
    return dataclasses.replace(TINY, run=dataclasses.replace(TINY.run, dir=str(folder), **run))


def test_a_run_of_the_first_layout_resumes(tmp_path, capsys):
    """It stopped at step 2, and was written before checkpoints had checksums and before the option on_nonfinite."""
    with tarfile.open(Path(__file__).parents[2] / "fixtures" / "run_layout_1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    run = config(tmp_path / "run", steps=4, batch_size=8, log_every=1, eval_every=2, save_every=2)
    run = dataclasses.replace(
        run,
        model=TINY.model.clone(embed_dim=8, mlp_dim=8, depth=1, num_heads=2),
        optim=dataclasses.replace(TINY.optim, ema=0.9),
        data=dataclasses.replace(TINY.data, train_split="train[:40]", test_split="test[:24]"),
        mesh=dataclasses.replace(TINY.mesh, data=1),
    )
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert "on_nan" not in saved["run"]
    before = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    fit(run, make_task)
    told = capsys.readouterr().out
    assert "the checkpoint of step 2 was not verified: an older version saved it without checksums" in told
    assert "Resumed from step 2 " in told
    after = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in after] == [json.loads(line)["step"] for line in before]
    assert after[:3] == before[:3]
    assert (tmp_path / "run" / "checkpoints" / "4" / "manifest.json").exists()


def test_a_path_that_is_not_utf8_is_refused(tmp_path):
    """Tensorstore could write no checkpoint there."""
    with pytest.raises(UserError, match=r"^--run\.dir must be a UTF-8 path, got '.*/run\\udcff'\. Choose another"):
        RunFolder(config(os.fsdecode(bytes(tmp_path) + b"/run\xff")))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_with_old_names_of_options_and_metrics_resumes(tmp_path, capsys):
    """A run of train.aae at commit bf06d81 with --run.on-nan skip. It stopped at step 3 of 5, between train rows."""
    with tarfile.open(Path(__file__).parents[2] / "fixtures" / "run_layout_2.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "run"
    old = json.loads((folder / "config.json").read_text())
    assert "task" not in old and old["run"]["on_nan"] == "skip" and "warmup" in old["optim"]["generator"]
    assert '"told_apart"' in (folder / "metrics.jsonl").read_text()
    assert read_record(folder).task == "aae"
    options = "--model.encoder.hidden-sizes 8 8 --model.decoder.hidden-sizes 8 8 --model.discriminator.hidden-sizes 8 4"
    options += " --model.decoder.image-shape 8 8 1 --data.image-size 8 8 --data.train-split train[:60]"
    options += " --data.test-split test[:24] --validation-split train[60:90] --metric-examples 20 --run.batch-size 8"
    options += " --run.steps 5 --run.log-every 2 --run.eval-every 3 --run.save-every 3 --run.on-nonfinite skip"
    config = parse("aae", aae.PRESETS, ["tiny", *options.split(), "--mesh.data", "1", "--run.dir", str(folder)])
    before = read_lines(folder / "metrics.jsonl")
    fit(config, make_aae_task)
    assert "Resumed from step 3 " in capsys.readouterr().out
    assert json.loads((folder / "config.json").read_text())["task"] == "aae"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line.keys() for line in lines] == [line.keys() for line in before]
    assert lines[:2] == before[:2]
    # The checkpoint contains the first half of the row of step 4. Without it, the mean would only cover one step.
    np.testing.assert_allclose(
        [lines[2][name] for name in ("discriminator_accuracy", "reconstruction")],
        [before[2][name] for name in ("discriminator_accuracy", "reconstruction")],
        rtol=1e-4,
    )
    record = read_record(folder)
    assert (record.state, record.task_info.best_metric) == ("finished", "reconstruction")


def test_an_option_that_was_renamed_is_read_from_older_folders(tmp_path):
    tree = config_to_tree(aae.PRESETS["tiny"].config)
    tree["labelled_batch_size"] = tree.pop("labeled_batch_size") + 7
    (tmp_path / "config.json").write_text(json.dumps(tree))
    assert read_config(tmp_path, aae.Config).labeled_batch_size == tree["labelled_batch_size"]


def test_a_run_of_another_task_is_named(tmp_path):
    with RunFolder(config(tmp_path / "run")):
        pass
    other = dataclasses.replace(aae.PRESETS["tiny"].config, run=config(tmp_path / "run").run)
    with pytest.raises(UserError, match=r"is a run of train\.vit, not of train\.aae\. Choose another --run\.dir"):
        RunFolder(other)


def test_a_field_missing_in_an_older_folder_counts_as_its_default(tmp_path):
    """Any other value is rejected."""
    with RunFolder(config(tmp_path / "run")):
        pass
    path = tmp_path / "run" / "config.json"
    saved = json.loads(path.read_text())
    del saved["data"]["crop"], saved["model"]["num_registers"]
    path.write_text(json.dumps(saved))
    with RunFolder(config(tmp_path / "run")):
        pass
    path.write_text(json.dumps(saved))
    other = config(tmp_path / "run")
    other = dataclasses.replace(other, model=other.model.clone(num_registers=2))
    with pytest.raises(UserError, match=r"model.num_registers was 0, now 2\. "):
        RunFolder(other)


@pytest.mark.parametrize("leftover", [".0123456789abcdef.tmp", "config.json.new"])
def test_leftovers_of_a_process_killed_at_its_start_do_no_harm(leftover, tmp_path):
    (tmp_path / "lock").write_text('{"pid": 1, "host": "gone", "since": "2026-01-01"}')
    (tmp_path / leftover).write_text('{"da')
    with RunFolder(config(tmp_path)) as folder:
        assert "process 1 on gone" in str(folder.left_by)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("name", ["checkpoints", "pictures", "metrics.jsonl", "report.html", "lock"])
def test_a_run_does_not_write_through_links(tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    with RunFolder(config(tmp_path / "run")):
        pass
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        UserError, match=rf"must not contain symbolic links, got {name}\. A run writes only inside its folder"
    ):
        RunFolder(config(tmp_path / "run"))
    assert not any((tmp_path / "elsewhere").iterdir())


def test_links_deeper_in_a_run_folder_are_refused_except_those_of_wandb(tmp_path):
    for place in ("wandb/latest-run", "pictures/attention.png", "checkpoints/5/state/d"):
        path = tmp_path / "run" / place
        with RunFolder(config(tmp_path / "run")):
            pass
        path.parent.mkdir(parents=True)
        path.symlink_to(tmp_path / "elsewhere")
        if not place.startswith("wandb"):
            with pytest.raises(UserError, match=f"must not contain symbolic links, got {place}"):
                RunFolder(config(tmp_path / "run"))
            path.unlink()


def test_what_a_killed_process_left_in_a_subfolder_is_removed(tmp_path):
    with RunFolder(config(tmp_path)):
        pass
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / ".0123456789abcdef.tmp").touch()
    with RunFolder(config(tmp_path)):
        pass
    assert not any((tmp_path / "pictures").iterdir())


@pytest.mark.parametrize("content", ["", "{", "[" * 10**5, "\x00"])
def test_a_config_that_is_not_json_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(
        UserError, match=r"config.json must be valid JSON: .*\. The file is damaged\. Choose another --run.dir"
    ):
        RunFolder(config(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "config.json must be a JSON object, got a list"),
        ("3", "config.json must be a JSON object, got a int"),
        ('{"run": 3}', "contains a run with other options"),
        ('{"model": [1]}', "contains a run with other options"),
    ],
)
def test_a_config_of_another_type_is_another_config(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        RunFolder(config(tmp_path))


def test_options_that_change_no_step_may_differ_on_resume(tmp_path):
    with RunFolder(config(tmp_path / "run")):
        pass
    with RunFolder(config(tmp_path / "run", on_nonfinite="skip", on_save_error="retry")):
        pass


INFO = ImageInfo((28, 28, 1), ["cat", "dog"])
PRINTS = {"train": "1a", "test": "2b"}


@pytest.mark.parametrize(
    ("info", "prints", "told"),
    [
        (
            INFO._replace(label_names=["dog", "kitten"]),
            PRINTS,
            r"label_names was \['cat', 'dog'\], now \['dog', 'kitten'\]",
        ),
        (INFO._replace(image_shape=(28, 28, 3)), PRINTS, r"image_shape was \(28, 28, 1\), now \(28, 28, 3\)"),
        (INFO, {"train": "3c", "test": "2b"}, "the examples of train changed"),
        (INFO, {"train": "1a", "test": "3c"}, "the examples of test changed"),
    ],
)
def test_a_run_with_a_checkpoint_refuses_other_data(tmp_path, info, prints, told):
    """Otherwise a finished run would give its classes other names."""
    with RunFolder(config(tmp_path)) as folder:
        folder.record_data(info, prints)
        folder.record_data(INFO, PRINTS)  # Without a checkpoint the run starts again, so the data may change.
        (folder.checkpoints / "5").mkdir(parents=True)
        folder.record_data(INFO, PRINTS)
        before = (tmp_path / "images.json").read_bytes()
        with pytest.raises(
            UserError, match=f"is not the one that the run in {tmp_path} was trained on: {told}\\. Restore"
        ):
            folder.record_data(info, prints)
    assert (tmp_path / "images.json").read_bytes() == before


def test_an_older_run_records_the_data_that_it_finds(tmp_path):
    with RunFolder(config(tmp_path)) as folder:
        (folder.checkpoints / "5").mkdir(parents=True)
        (tmp_path / "images.json").write_text(json.dumps(INFO._asdict()))
        folder.record_data(INFO, PRINTS)
        with pytest.raises(UserError, match="the examples of train changed"):
            folder.record_data(INFO, {"train": "", "test": "2b"})


def test_a_path_with_a_backslash_is_refused(tmp_path):
    """The library of the checkpoints would write them to another folder."""
    with pytest.raises(UserError, match=r"--run\.dir must have no backslash, got .*runs\\mine\. Write / between"):
        RunFolder(config(tmp_path / r"runs\mine"))
    assert not list(tmp_path.iterdir())
