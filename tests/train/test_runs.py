"""`python -m train.runs`: one line for each run folder, with any content."""

import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

from train import runs
from train.config.tree import config_to_tree
from train.data import open_source
from train.data.source import AbstractSource
from train.process.errors import UserError
from train.run.lock import Lock
from train.run.record import TaskInfo, read_record
from train.runs import find_runs, main

ROOT = Path(__file__).parents[2]
NO_CONFIG = "the path must be a run folder, such as runs/vit-sample, but the file config.json was not found"


def a_run(folder, task="vit", saved=(200, 400), accuracies=((200, 0.75), (400, 0.5)), preset="tiny", metric="accuracy"):
    """Writes the parts of a folder of a 400-step run that the list reads."""
    config = config_to_tree(importlib.import_module(f"configs.{task}").PRESETS[preset].config)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    lines = [{"step": step, "split": "test", "loss": 9.0, metric: score} for step, score in accuracies]
    lines.insert(0, {"step": 100, "split": "train", metric: 0.99 if metric == "accuracy" else 0.01})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "timing.jsonl").write_text('{"step": 100, "seconds": 40.0}\n{"step": 200, "seconds": 3723.4}\n')
    for step in saved:
        (folder / "checkpoints" / str(step)).mkdir(parents=True)
    return folder


def only(folder):
    (run,) = find_runs(folder)
    return run


def table(folder, capsys, *options):
    main([str(folder), *options])
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("saved", "accuracies", "state", "step"),
    [
        ((200, 400), ((200, 0.75), (400, 0.5)), "finished", 400),
        ((), ((400, 0.5),), "finished", 400),  # checkpoints deleted to save space
        ((100, 200), ((200, 0.75),), "stopped", 200),
        ((200, 400), ((200, 0.75),), "not evaluated", 400),
        ((), (), "no checkpoint", 0),
    ],
)
def test_checkpoints_and_the_last_evaluation_decide_the_state_of_a_run(tmp_path, saved, accuracies, state, step):
    (a_run(tmp_path / "run", saved=saved, accuracies=accuracies) / "checkpoints").mkdir(exist_ok=True)
    (tmp_path / "run" / "checkpoints" / "300.orbax-checkpoint-tmp-1").mkdir()
    run = only(tmp_path)
    assert (run.state, run.step, run.steps, run.note) == (state, step, 400, None)
    # what a killed process leaves
    (tmp_path / "run" / "lock").write_text('{"pid": 1, "host": "gone", "since": "2026-01-01"}')
    assert only(tmp_path) == dataclasses.replace(run)


def test_a_run_is_running_while_a_process_has_its_lock(tmp_path):
    """The list does not acquire the lock."""
    folder = a_run(tmp_path / "run", saved=(200,), accuracies=((200, 0.75),))
    lock = Lock(folder)
    try:
        run = only(tmp_path)
        assert (run.state, run.step) == ("running", 200)
        assert run.note is not None and re.fullmatch(rf"process {os.getpid()} on .*, started 20.*", run.note)
        with pytest.raises(UserError, match="is in use"):
            Lock(folder)
    finally:
        lock.release()
    assert only(tmp_path).state == "stopped"
    Lock(folder).release()


def test_a_line_has_task_metric_best_last_time_and_seed(tmp_path, capsys):
    a_run(tmp_path / "a")
    a_run(tmp_path / "b", "aae", accuracies=((200, 0.25), (400, 0.5)), metric="reconstruction")
    for name in ("config.json", "metrics.jsonl", "timing.jsonl", "checkpoints"):
        os.utime(tmp_path / "a" / name, (time.time() - 7200 - 60,) * 2)
        os.utime(tmp_path / "b" / name, (time.time() - 86_400 * 3,) * 2)
    (tmp_path / "a" / "report.html").write_text("made anew later, which is no training")
    head, first, second = table(tmp_path, capsys)
    assert head.split() == ["run", "task", "state", "steps", "metric", "best", "last", "wrote", "took", "seed"]
    last = ["2", "h", "ago", "1:02:03", "0"]
    assert first.split() == [str(tmp_path / "a"), "vit", "finished", "400/400", "accuracy", "0.7500", "0.5000", *last]
    last = ["3", "d", "ago", "1:02:03", "0"]
    assert second.split()[1:] == ["aae", "finished", "400/400", "reconstruction", "0.2500", "0.5000", *last]


@pytest.mark.parametrize("task", ["vit", "lstm", "mha", "aae"])
def test_a_folder_without_task_json_uses_the_default_best_metric(task, tmp_path):
    presets = importlib.import_module(f"configs.{task}").PRESETS
    make_task = importlib.import_module(f"train.{task}").make_task
    opened = cache(lambda data: open_source(data, data.train_split, train=True))
    for name, preset in presets.items():
        config = preset.config
        if task == "aae":  # this task reads source images, which the bundled digits provide
            sample = dataclasses.replace(config.data, name="mnist_sample", train_split="train[:90%]")
            config = dataclasses.replace(config, data=sample, validation_split="train[90%:]")
            source = opened(sample)
        else:
            labels = [str(label) for label in range(config.model.num_classes)]
            source = AbstractSource("x", "train", (28, 28, 1), len(labels), labels, count=100)
        made = make_task(config, source)
        folder = a_run(tmp_path / name, task, preset=name, metric=made.best)
        if made.best == "accuracy":  # test rows of an autoencoder have both metrics
            (folder / "metrics.jsonl").write_text('{"step": 4, "split": "test", "reconstruction": 1, "accuracy": 1}\n')
        record = read_record(folder)
        assert (record.task, record.task_info) == (task, TaskInfo(made.best, made.best_mode))


def test_task_json_names_the_best_metric(tmp_path):
    folder = a_run(tmp_path / "run", accuracies=((200, 5.0), (400, 7.0)), metric="distance")
    words = {"distance": "mean distance of the points"}
    content = {"best_metric": "distance", "best_mode": "min", "metric_descriptions": words}
    (folder / "task.json").write_text(json.dumps(content))
    assert read_record(folder).task_info == TaskInfo("distance", "min", words)
    run = only(tmp_path)
    assert (run.state, run.task, run.metric, run.best, run.last) == ("finished", "vit", "distance", 5.0, 7.0)


def test_a_run_of_an_unknown_task_is_listed_by_the_tasks_name(tmp_path):
    folder = a_run(tmp_path / "run")
    tree = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(tree | {"task": "theirs", "model": {"class": "Theirs"}}))
    run = only(tmp_path)
    assert (run.state, run.task, run.metric, run.best) == ("finished", "theirs", "accuracy", 0.75)


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("config.json", "{", "config.json must be valid JSON"),
        ("config.json", "[" * 10**5, "config.json must be valid JSON"),
        ("config.json", "\xff", "config.json must be valid JSON"),
        ("config.json", "[1]", "config.json must be a JSON object"),
        ("config.json", '{"model_type": "bert"}', "config.json is from a different program"),
        ("config.json", '{"model": {"class": "ViT"}, "run": 3}', "config.json is from a different program"),
        (
            "config.json",
            '{"model": {"class": ["ViT"]}, "run": {"steps": 3}}',
            "config.json is from a different program",
        ),
        (
            "config.json",
            '{"model": {"class": "ViT"}, "run": {"steps": true}}',
            "config.json is from a different program",
        ),
        ("config.json", None, NO_CONFIG),
        ("task.json", "{", "task.json must be valid JSON"),
        ("task.json", '{"best_metric": "accuracy"}', "task.json is damaged"),
        ("task.json", None, "task.json must be a regular file"),
        ("metrics.jsonl", "{\n", "metrics.jsonl, line 1 must be a JSON object with a step"),
        ("metrics.jsonl", '{"step": "4"}\n', "metrics.jsonl, line 1 must be a JSON object with a step"),
        ("timing.jsonl", "3\n", "timing.jsonl, line 1 must be a JSON object with a step"),
        ("metrics.jsonl", None, "metrics.jsonl must be a regular file"),
        ("lock", None, "lock must be a regular file"),
        ("config.json", "pipe", NO_CONFIG),
        ("timing.jsonl", "pipe", "timing.jsonl must be a regular file"),
        ("lock", "pipe", "lock must be a regular file"),
        ("lock", "link", "cannot read "),
    ],
)
def test_a_damaged_folder_is_reported_and_does_not_end_the_list(tmp_path, capsys, file, content, why):
    for name in ("a", "b", "c"):
        a_run(tmp_path / name)
    path = tmp_path / "b" / file
    path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
    elif content == "pipe":
        os.mkfifo(path)
    elif content == "link":
        path.symlink_to(tmp_path / "a" / "config.json")
    else:
        path.write_bytes(content.encode("latin-1"))
    first, second, third = find_runs(tmp_path)
    assert (first.state, second.state, third.state) == ("finished", "damaged", "finished")
    assert second.note is not None and second.note.startswith(why) and str(tmp_path) not in second.note
    lines = table(tmp_path, capsys)
    assert len(lines) == 5 and lines[2].split() == [str(tmp_path / "b"), "damaged"]
    assert lines[4] == f"{tmp_path / 'b'}: damaged: {second.note}"


@pytest.mark.parametrize("value", ["NaN", "1e999", "true", '"0.5"', "1" + "0" * 400, "null", "[]"])
def test_a_value_that_is_not_a_number_is_no_score_and_no_time(tmp_path, capsys, value):
    folder = a_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text(
        f'{{"step": 200, "split": "test", "accuracy": 0.5}}\n{{"step": 400, "split": "test", "accuracy": {value}}}\n'
    )
    (folder / "timing.jsonl").write_text(f'{{"step": 100, "seconds": {value}}}\n')
    run = only(tmp_path)
    assert (run.state, run.best, run.last, run.seconds) == ("finished", 0.5, 0.5, None)
    assert len(table(tmp_path, capsys)) == 2
    main([str(tmp_path), "--json"])
    assert json.loads(capsys.readouterr().out)["best"] == 0.5


def test_control_characters_affect_only_their_own_line(tmp_path, capsys):
    name = "[bold red]x\x1b[31m\r\x07\n:smile: \u202e"
    a_run(tmp_path / name)
    (tmp_path / name / "config.json").write_text('{"\x1b[2J')
    head, line, note = table(tmp_path, capsys)
    shown = r"[bold red]x\x1b[31m\r\x07\n:smile: \u202e"
    assert line.startswith(f"{tmp_path}/{shown}  ") and note.startswith(f"{tmp_path}/{shown}: damaged")
    assert all(c.isprintable() for c in head + line + note)


def test_runs_are_found_in_all_subfolders(tmp_path):
    """But not in hidden folders, behind links, or inside another run folder."""
    a_run(tmp_path / "runs" / "deep" / "er" / "run")
    a_run(tmp_path / "runs" / "a" / "pictures" / "inner")
    (tmp_path / "runs" / "a" / "config.json").write_text("{}")
    a_run(tmp_path / "runs" / ".hidden")
    a_run(tmp_path / "elsewhere")
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs" / "empty").mkdir()
    names = [str(Path(run.path).relative_to(tmp_path / "runs")) for run in find_runs(tmp_path / "runs")]
    assert names == ["a", "deep/er/run"]
    assert [run.path for run in find_runs(tmp_path / "elsewhere")] == [str(tmp_path / "elsewhere")]


def test_runs_are_sorted_by_name_by_time_and_each_metric_by_its_best(tmp_path, capsys):
    for age, (name, score) in enumerate((("d", 0.5), ("c", 0.75), ("b", 0.625))):
        a_run(tmp_path / name, accuracies=((400, score),))
        for file in ("config.json", "metrics.jsonl", "timing.jsonl", "checkpoints"):
            os.utime(tmp_path / name / file, (1e9 - age, 1e9 - age))
    a_run(tmp_path / "a", "aae", accuracies=((400, 0.25),), metric="reconstruction")
    a_run(tmp_path / "e", "aae", accuracies=((400, 0.125),), metric="reconstruction")
    os.utime(tmp_path / "e" / "metrics.jsonl", (2e9, 2e9))
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "config.json").write_text("{}")

    def order(*options):
        main([str(tmp_path), "--json", *options])
        return "".join(json.loads(line)["path"][-1] for line in capsys.readouterr().out.splitlines())

    assert order() == "abcdef"
    assert order("--sort", "metric") == "cbdeaf"
    assert order("--sort", "time") == "eadcbf"


def test_runs_are_filtered_by_task_and_state(tmp_path, capsys):
    a_run(tmp_path / "a", "aae", accuracies=((400, 0.25),), metric="reconstruction")
    a_run(tmp_path / "b", accuracies=((400, 0.5),))
    a_run(tmp_path / "c", accuracies=())
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "config.json").write_text("{}")

    def names(*options):
        main([str(tmp_path), "--json", *options])
        return "".join(json.loads(line)["path"][-1] for line in capsys.readouterr().out.splitlines())

    assert names("--task", "vit") == "bc"
    assert names("--state", "finished") == "ab"
    assert names("--task", "vit", "--state", "finished") == "b"
    assert names("--state", "damaged") == "d"
    main([str(tmp_path), "--task", "lstm"])
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == f"no run in {tmp_path} has this task and state. Tasks: aae, vit. Omit --task or --state\n"
    with pytest.raises(UserError, match=r"^--state must be one of running, finished, .*, damaged, got done\. Choose"):
        main([str(tmp_path), "--state", "done"])


def test_a_missing_folder_or_an_empty_one_is_reported_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"but runs does not exist\. Run python -m train.vit tiny to make a run in runs/"
    ):
        main([])
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="but runs is not a folder"):
        main([])
    (tmp_path / "empty").mkdir()
    for options in (["empty"], ["empty", "--json"]):
        main(options)
        told = capsys.readouterr()
        assert (
            told.out == ""
            and told.err == "there is no run in empty. Run python -m train.vit tiny to make a run in runs/\n"
        )
    with pytest.raises(UserError, match="--sort"):
        main(["empty", "--sort", "size"])


def test_a_narrow_terminal_gets_fewer_columns_and_no_line_is_truncated(tmp_path, capsys, monkeypatch):
    a_run(tmp_path / ("long" * 20))
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(runs.sys.stdout, "isatty", lambda: True, raising=False)
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in table(tmp_path, capsys)]
    assert max(map(len, lines)) == 70 and lines[0].split() == ["run", "task", "state", "steps", "best", "wrote"]
    width = lines[0].index("task")
    assert "".join(line[:width].strip() for line in lines[1:]) == str(tmp_path / ("long" * 20))


def test_the_list_changes_nothing_and_imports_no_jax(tmp_path):
    a_run(tmp_path / "run")
    (tmp_path / "run" / "lock").write_text("{}")

    def seen():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")}

    before = seen()
    program = "import sys; from train.runs import main; main(sys.argv[1:]); sys.exit('jax' in sys.modules)"
    command = [sys.executable, "-c", program, str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr, result.stdout.count("finished")) == (0, "", 1)
    assert seen() == before
