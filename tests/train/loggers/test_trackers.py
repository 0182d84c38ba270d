"""TensorBoard and Weights & Biases get the data of the run folder, also of a resumed run, and never end a run."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import wandb
from runs import interrupted_at, lines, small, with_run
from tensorboardX.proto.event_pb2 import Event
from wandb.proto.wandb_internal_pb2 import Record

from train.config.flat import flatten
from train.config.tree import config_to_tree
from train.engine import publisher
from train.engine.loop import fit
from train.loggers import trackers
from train.loggers.trackers import check_trackers
from train.process.errors import Interrupted, UserError
from train.vit import make_task

ROOT = Path(__file__).parents[3]
BOTH = {"tensorboard": True, "wandb": "project"}


@pytest.fixture(autouse=True, scope="module")
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        yield


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """An uninterrupted run with both trackers."""
    config = with_run(small("", workers=0), tmp_path_factory.mktemp("tracked") / "run", save_every=3, **BOTH)
    fit(config, make_task)
    return config


def checksum(content):
    """CRC-32C, bit by bit, masked as in TFRecord files."""
    register = 0xFFFFFFFF
    for byte in content:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    register ^= 0xFFFFFFFF
    return (register >> 15 | register << 17) + 0xA282EAD8 & 0xFFFFFFFF


def events(config):
    """Returns all events in order; the first event of the file is its version."""
    (path,) = Path(config.run.dir, "tensorboard").iterdir()
    assert "tfevents" in path.name
    content, found = path.read_bytes(), []
    while content:
        length, length_check = struct.unpack_from("<QI", content)
        (content_check,) = struct.unpack_from("<I", content, 12 + length)
        assert length_check == checksum(content[:8]) and content_check == checksum(content[12 : 12 + length])
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    assert found[0].file_version == "brain.Event:2"
    return found[1:]


def scalars(config):
    """Returns step, tag and value of every number, in order."""
    values = [(event.step, value) for event in events(config) for value in event.summary.value]
    return [(step, value.tag, value.simple_value) for step, value in values if value.HasField("simple_value")]


def strings(config):
    """Returns, for each tag of strings: the step, the plugin, the strings and their description."""
    values = [(event.step, value) for event in events(config) for value in event.summary.value]
    tags = [value.tag for _, value in values if value.HasField("tensor")]
    pictures = [f"pictures/{path.stem}" for path in Path(config.run.dir, "pictures").glob("*.png")]
    assert sorted(tags) == sorted(["config", *pictures])
    return {
        value.tag: (
            step,
            value.metadata.plugin_data.plugin_name,
            list(value.tensor.string_val),
            value.metadata.summary_description,
        )
        for step, value in values
        if value.HasField("tensor")
    }


def offline_runs(config):
    """Yields, for each process of the run in order, the records that W&B's own service wrote."""
    for path in sorted(Path(config.run.dir, "wandb").glob("offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime_ns):
        content, position, parts, found = path.read_bytes(), 7, b"", []
        while position < len(content):
            if (left := 32768 - position % 32768) < 7:  # end of a block of the log; a record's header is never split
                position += left
                continue
            length, kind = struct.unpack_from("<HB", content, position + 4)
            parts += content[position + 7 : position + 7 + length]
            position += 7 + length
            if kind in (1, 4):  # a complete record, or its last part
                found.append(Record.FromString(parts))
                parts = b""
        yield found


def history(records):
    """Yields W&B's step and the values of each row."""
    for record in records:
        if record.HasField("history"):
            row = {item.nested_key[0] if item.nested_key else item.key: item.value_json for item in record.history.item}
            values = {name: json.loads(value) for name, value in row.items()}
            yield {name: x for name, x in values.items() if name not in ("_timestamp", "_runtime")}


def expected_rows(config):
    """Yields the rows that a tracker should have, by tag: one for each row of metrics.jsonl."""
    speeds = {line["step"]: line["examples_per_second"] for line in lines(config, "timing")}
    for line in lines(config):
        step, split = line.pop("step"), line.pop("split")
        if split == "train":
            line["examples_per_second"] = speeds[step]
        yield step, {f"{split}/{name}": value for name, value in line.items()}


def assert_tensorboard_holds_the_run(config):
    expected = [(step, tag, np.float32(value)) for step, row in expected_rows(config) for tag, value in row.items()]
    assert sorted(scalars(config)) == sorted(expected)
    picture = Path(config.run.dir, "pictures", "attention.png").read_bytes()
    width, height = struct.unpack(">II", picture[16:24])
    step, plugin, shown, caption = strings(config)["pictures/attention"]
    assert (step, plugin, shown) == (5, "images", [b"%d" % width, b"%d" % height, picture])
    assert caption in Path(config.run.dir, "report.html").read_text() and len(caption) > 20


def test_tensorboard_has_every_number_and_the_bytes_of_the_pictures(tracked):
    assert_tensorboard_holds_the_run(tracked)
    assert {"train/loss", "test/accuracy", "train/examples_per_second"} <= {tag for _, tag, _ in scalars(tracked)}
    times = [event.wall_time for event in events(tracked)]
    assert times == sorted(times)


def test_tensorboard_shows_the_config_unchanged(tracked):
    step, plugin, (text,), _ = strings(tracked)["config"]
    assert (step, plugin) == (0, "text")
    shown = dict(line.removeprefix("    ").split(": ", 1) for line in text.decode().splitlines())
    saved = json.loads(Path(tracked.run.dir, "config.json").read_text())
    del saved["task"]
    assert {name: json.loads(value) for name, value in shown.items()} == flatten(saved)


def test_weights_and_biases_has_every_number_the_pictures_and_the_config(tracked):
    (records,) = offline_runs(tracked)
    *rows, last = history(records)
    assert [(row.pop("step"), row) for row in rows] == [
        (step, {"_step": i, **row}) for i, (step, row) in enumerate(expected_rows(tracked))
    ]
    (run,) = (record.run for record in records if record.HasField("run"))
    assert run.project == "project" and run.display_name == "run"
    assert run.run_id == json.loads(Path(tracked.run.dir, "wandb", "run.json").read_text())["id"]
    config = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in run.config.update}
    wanted = flatten(json.loads(json.dumps(config_to_tree(tracked))))
    assert {name: config[name] for name in wanted} == wanted
    (axis,) = (record.metric for record in records if record.HasField("metric"))
    assert (axis.glob_name, axis.step_metric) == ("*", "step")
    assert (last["step"], last["_step"]) == (5, 5)
    copies = Path(tracked.run.dir, "wandb").glob("offline-run-*/files/media/images/**/*.png")
    pictures = Path(tracked.run.dir, "pictures").glob("*.png")
    assert {path.read_bytes() for path in copies} == {path.read_bytes() for path in pictures}


def without_speeds(rows):
    return [(step, tag, value) for step, tag, value in rows if not tag.endswith("/examples_per_second")]


@pytest.mark.slow
def test_trackers_of_a_resumed_run_equal_those_of_an_uninterrupted_one(tracked, tmp_path, monkeypatch):
    config = with_run(tracked, tmp_path / "run")
    with monkeypatch.context() as patch:
        interrupted_at(patch, ("step", 3), signal.SIGTERM)
        with pytest.raises(Interrupted):
            fit(config, make_task)
    shutil.copytree(tmp_path / "run" / "checkpoints" / "3", tmp_path / "3")
    fit(config, make_task)
    # Resume as if the run was killed after its last row: the trackers already have steps that are repeated.
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(tmp_path / "3", tmp_path / "run" / "checkpoints" / "3")
    fit(config, make_task)
    assert without_speeds(scalars(config)) == without_speeds(scalars(tracked))
    assert_tensorboard_holds_the_run(config)
    runs = list(offline_runs(config))
    assert len({record.run.run_id for records in runs for record in records if record.HasField("run")}) == 1
    *rows, _ = history(runs[-1])
    exits = [record.exit.exit_code for records in runs for record in records if record.HasField("exit")]
    assert exits == [1, 0, 0]
    assert [row["_step"] for row in rows] == [0, 1, 2, 3, 4]
    assert [{"step": step, "_step": i, **row} for i, (step, row) in enumerate(expected_rows(config))] == rows


@pytest.mark.slow
def test_a_tracker_that_is_added_later_gets_all_rows(tracked, tmp_path, capsys):
    """Also if a row has no split."""
    config = with_run(tracked, tmp_path / "run", tensorboard=False, wandb=None)
    fit(config, make_task)
    assert not (tmp_path / "run" / "tensorboard").exists() and not (tmp_path / "run" / "wandb").exists()
    rows = list(expected_rows(config))
    metrics = tmp_path / "run" / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text('{"step": 1, "loss": 2.0}\n' + whole)
    config = with_run(config, tmp_path / "run", **BOTH)
    fit(config, make_task)
    assert "failed" not in capsys.readouterr().out
    metrics.write_text(whole)
    assert_tensorboard_holds_the_run(config)
    began = [
        event.wall_time - line["seconds"]
        for event in events(config)
        for line in lines(config, "timing")
        if line["step"] == event.step and any(value.tag == "train/loss" for value in event.summary.value)
    ]
    assert len(began) == 3 and max(began) - min(began) < 1e-3
    (records,) = offline_runs(config)
    *found, _ = history(records)
    assert [(row.pop("step"), row) for row in found] == [
        (step, {"_step": i, **row}) for i, (step, row) in enumerate(rows, 1)
    ]


def test_weights_and_biases_gets_only_the_rows_that_it_lacks(tracked, tmp_path, monkeypatch):
    logged = []
    run = SimpleNamespace(
        starting_step=4,
        offline=False,
        url="https://the.run",
        define_metric=lambda *_, **__: None,
        log=lambda values, step, commit: logged.append((step, values["step"], sorted(values)[-1])),
        finish=lambda exit_code: logged.append(exit_code),
    )
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    shutil.copytree(tracked.run.dir, tmp_path / "run")
    fit(with_run(tracked, tmp_path / "run", tensorboard=False), make_task)
    assert logged == [(4, 5, "test/top5_accuracy"), (5, 5, "step"), 0]


@pytest.mark.slow
@pytest.mark.parametrize(("option", "package"), [(("tensorboard",), "tensorboardX"), (("wandb", "project"), "wandb")])
def test_a_missing_package_of_a_tracker_is_one_line_and_exit_status_2(option, package, tmp_path):
    """The program ends before it creates the run folder."""
    arguments = ["vit", "tiny", "--run.dir", str(tmp_path / "run"), f"--run.{option[0]}", *option[1:]]
    program = f"import sys; sys.modules[{package!r}] = None; sys.argv = {arguments}\n"
    program += "from train.config.cli import run_main\nfrom train.vit import main\nrun_main(main)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: --run.{option[0]} needs the package {package}, which is not installed. "
        'Run: pip install -e ".[trackers]"\n'
    )
    assert not (tmp_path / "run").exists()


def test_a_folder_named_like_a_package_is_not_taken_for_the_package(tracked, tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb")
    with pytest.raises(UserError, match="needs the package wandb, which is not installed"):
        check_trackers(tracked)


def full_disk_at(monkeypatch, step, path):
    """From this step on, every write to the file fails as on a full disk."""

    class Console(publisher.RunConsole):
        def step(self, now):
            if now == step:
                path.unlink()
                path.symlink_to("/dev/full")
            super().step(now)

    monkeypatch.setattr(publisher, "RunConsole", Console)


@pytest.mark.slow
@pytest.mark.parametrize("on_save_error", ["retry", "stop"])
def test_a_full_disk_ends_a_tracker_but_not_the_run(tracked, tmp_path, monkeypatch, capsys, on_save_error):
    """The next process repairs the tracker's file."""
    config = with_run(tracked, tmp_path / "run", wandb=None, on_save_error=on_save_error)
    with monkeypatch.context() as patch:
        full_disk_at(patch, 3, tmp_path / "run" / "tensorboard" / "events.out.tfevents.run")
        fit(config, make_task)
    words = capsys.readouterr().out
    assert words.count("warning") == 1
    assert (
        "warning: TensorBoard failed, and training continues without it: [Errno 28] No space left on device\n" in words
    )
    assert lines(config) == lines(tracked)
    assert (tmp_path / "run" / "checkpoints" / "5").exists() and (tmp_path / "run" / "report.html").exists()
    (tmp_path / "run" / "tensorboard" / "events.out.tfevents.run").unlink()  # the link to /dev/full
    fit(config, make_task)
    assert_tensorboard_holds_the_run(config)


def test_a_tracker_that_cannot_start_does_not_end_the_run(tracked, tmp_path, monkeypatch, capsys):
    def init(**_):
        raise wandb.errors.CommError("no server\nanswers")

    monkeypatch.setattr(wandb, "init", init)
    shutil.copytree(tracked.run.dir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "tensorboard")
    (tmp_path / "run" / "tensorboard").touch()
    fit(with_run(tracked, tmp_path / "run"), make_task)
    words = capsys.readouterr().out
    assert "warning: TensorBoard failed, and training continues without it: [Errno 17] File exists" in words
    assert "warning: Weights & Biases failed, and training continues without it: no server answers\n" in words
    assert words.count("warning") == 2 and "test accuracy" in words


@pytest.mark.parametrize(
    ("project", "content", "message"),
    [
        ("a/b", None, "--run.wandb a/b: Invalid project name"),
        ("", None, "--run.wandb must be the name of a project, got an empty name"),
        ("project", "{}", "run.json must be"),
        ("project", "[", "run.json must be"),
    ],
)
def test_a_wrong_option_is_a_one_line_error_before_the_first_step(tracked, tmp_path, project, content, message):
    config = with_run(tracked, tmp_path / "run", wandb=project, tensorboard=False)
    if content is not None:
        shutil.copytree(tracked.run.dir, tmp_path / "run")
        (tmp_path / "run" / "wandb" / "run.json").write_text(content)
    with pytest.raises(UserError) as error:
        fit(config, make_task)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_only_the_main_process_starts_trackers(tracked, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "is_main_process", lambda: False)
    fit(with_run(tracked, tmp_path / "run"), make_task)
    assert not (tmp_path / "run" / "tensorboard").exists() and not (tmp_path / "run" / "wandb").exists()


@pytest.mark.slow
def test_an_offline_run_writes_only_in_its_folder(tmp_path):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "WANDB_"))}
    environment |= {"HOME": str(home), "TMPDIR": str(elsewhere), "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    options = ["tiny", "--run.steps", "2", "--run.dir", str(tmp_path / "my run"), "--run.wandb", "project"]
    done = subprocess.run(
        [sys.executable, "-m", "train.vit", *options],
        **{"cwd": elsewhere, "env": environment, "capture_output": True, "text": True, "check": True},
    )
    assert done.stderr == ""
    assert f"upload the run later with: wandb sync '{tmp_path / 'my run' / 'wandb' / 'latest-run'}'\n" in done.stdout
    assert not list(home.rglob("*wandb*")) and not list(elsewhere.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "home", "my run"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ({}, "No API key configured. Use `wandb login` to log in"),
        ({"WANDB_API_KEY": "bad"}, "WANDB_API_KEY invalid: API key must have 40+ characters, has 3"),
    ],
)
def test_without_a_valid_key_the_run_prints_one_line_and_trains_without_weights_and_biases(key, reason, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "WANDB_"))}
    environment |= {"HOME": str(tmp_path), **key}
    options = ["tiny", "--run.steps", "2", "--run.dir", str(tmp_path / "run"), "--run.wandb", "project"]
    done = subprocess.run(
        [sys.executable, "-m", "train.vit", *options],
        **{"cwd": ROOT, "env": environment, "stdin": subprocess.DEVNULL, "capture_output": True, "text": True},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    warnings = [line for line in done.stdout.splitlines() if "Weights & Biases" in line]
    assert warnings == [
        f"warning: Weights & Biases failed, and training continues without it: {reason}. "
        "To log without an account, set WANDB_MODE=offline"
    ]
    assert "test accuracy" in done.stdout and (tmp_path / "run" / "checkpoints" / "2").is_dir()
