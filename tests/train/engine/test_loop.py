"""The loop around the steps: evaluation, checkpoints, streaming, reports."""

import dataclasses
import errno
import json
import logging
import math
import os
import platform
import shutil
import signal
import sys
import threading
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from runs import lines, small, with_run

from configs.base import Distributed, Mesh
from train.data import open_source
from train.engine.loop import _saved_progress, fit
from train.process.errors import RunStopped, UserError
from train.report.mistakes import read_mistakes
from train.report.page import write_report
from train.run.facts import Facts
from train.run.record import read_record
from train.task import Grid
from train.vit import make_task


def process_settings():
    """Returns the process settings that a training program changes and `fit` must not change."""
    loggers = {name: logging.getLogger(name).level for name in ("", "jax", "absl", "asyncio", "orbax")}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    hooks = (sys.excepthook, sys.unraisablehook, threading.excepthook)
    listeners = len(jax._src.monitoring.get_event_duration_listeners())
    return loggers, handlers, hooks, listeners, dict(os.environ), dict(jax.config.values), warnings.filters[:]


def test_fit_changes_no_setting_of_the_process(tmp_path):
    before = process_settings()
    fit(small(tmp_path / "run"), make_task)
    assert process_settings() == before


def test_processes_must_be_connected_before_fit(tmp_path):
    config = dataclasses.replace(small(tmp_path / "run"), distributed=Distributed("127.0.0.1:9", 2, 0))
    with pytest.raises(UserError, match=r"Call train\.process\.setup\.prepare_process\(config\) before fit"):
        fit(config, make_task)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = small(tmp_path_factory.mktemp("run") / "run")
    return config, fit(config, make_task)


def test_the_test_metrics_are_the_mean_over_every_example_once(finished):
    config, state = finished
    source = open_source(config.data, config.data.test_split)
    whole = {k: jnp.asarray(x) for k, x in source.gather(np.arange(24)).items()}
    values = make_task(config, source).evaluate(state, whole)  # 24 = 2 × 10 + 4: the loop had to pad the last batch
    assert lines(config)[-1]["split"] == "test"
    for name, value in values.items():
        np.testing.assert_allclose(lines(config)[-1][name], value.mean(), rtol=1e-5)
    labels = np.asarray(whole["label"])
    recalls = [np.mean(np.asarray(values["accuracy"])[labels == k]) for k in np.unique(labels)]
    assert np.ptp(np.bincount(labels)) > 0  # The classes are uneven, so the means differ.
    np.testing.assert_allclose(lines(config)[-1]["balanced_accuracy"], np.mean(recalls), rtol=1e-5)


def test_metrics_are_logged_when_the_config_says_and_at_the_end(finished):
    config, _ = finished
    steps = [(line["split"], line["step"]) for line in lines(config)]
    assert steps == [("train", 2), ("test", 3), ("train", 4), ("train", 5), ("test", 5)]
    assert [line["step"] for line in lines(config, "timing")] == [2, 4, 5]
    assert all(line["examples_per_second"] > 0 for line in lines(config, "timing"))
    assert {line["devices"] for line in lines(config, "timing")} == {"1 CPU device"}


def test_facts_about_the_run_are_in_its_folder_and_resuming_keeps_its_start(finished, tmp_path):
    config, state = finished
    facts = read_record(Path(config.run.dir)).task_info.facts
    assert facts.parameters == sum(x.size for x in jax.tree.leaves(state.params))
    assert facts.examples == {"train": 40, "test": 24}
    assert facts.versions["jax"] == jax.__version__ and facts.versions["Python"] == platform.python_version()
    assert facts.phases.keys() == {"start", "compilation", "training", "evaluation", "saving", "report"}
    assert min(facts.phases.values()) >= 0 and facts.phases["compilation"] > 0
    folder = tmp_path / "run"
    shutil.copytree(config.run.dir, folder)
    path = folder / "task.json"
    path.write_text(path.read_text().replace(facts.started, "2001-02-03 04:05"))
    fit(with_run(config, folder, steps=7, extend=True), make_task)
    again = read_record(folder).task_info.facts
    assert again.started == "2001-02-03 04:05"
    assert all(again.phases[name] >= seconds for name, seconds in facts.phases.items())
    assert again.phases["start"] > facts.phases["start"]


def test_a_run_without_facts_resumes_and_gets_them(finished, tmp_path):
    """Folders of older versions have none."""
    folder = tmp_path / "run"
    shutil.copytree(finished[0].run.dir, folder)
    content = json.loads((folder / "task.json").read_text())
    del content["facts"]
    (folder / "task.json").write_text(json.dumps(content))
    assert read_record(folder).task_info.facts == Facts()
    fit(with_run(finished[0], folder), make_task)
    assert read_record(folder).task_info.facts.examples == {"train": 40, "test": 24}
    assert lines(with_run(finished[0], folder)) == lines(finished[0])


def test_a_streamed_split_trains_to_the_same_bits_as_one_in_memory(finished, tmp_path):
    _, state = finished
    streamed = fit(small(tmp_path / "run", memory_limit=0, workers=0), make_task)
    for a, b in zip(jax.tree.leaves(streamed), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_resumed_run_on_streamed_images_takes_the_same_crops(tmp_path):
    config = small(tmp_path / "whole", image_size=(14, 14), crop=0.3, workers=0)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, save_every=3))
    whole = fit(config, make_task)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "5")
    again = dataclasses.replace(config, run=dataclasses.replace(config.run, dir=str(tmp_path / "again")))
    for a, b in zip(jax.tree.leaves(fit(again, make_task)), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    assert lines(again) == lines(config)


def test_several_steps_per_call_log_the_metrics_of_single_steps(finished, tmp_path):
    config, _ = finished
    several = small(tmp_path / "run")
    several = dataclasses.replace(several, run=dataclasses.replace(several.run, steps_per_call=4, log_every=1))
    fit(several, make_task)  # 3 steps, then 2
    tests = [line for line in lines(config) if line["split"] == "test"]
    assert [line for line in lines(several) if line["split"] == "test"] == tests
    trained = [line for line in lines(several) if line["split"] == "train"]
    assert [line["step"] for line in trained] == [1, 2, 3, 4, 5]
    first, second = trained[0]["loss"], trained[1]["loss"]
    assert (first + second) / 2 == lines(config)[0]["loss"]


def test_several_steps_per_call_need_a_split_in_memory(tmp_path):
    config = small(tmp_path / "run", memory_limit=0)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, steps_per_call=2))
    with pytest.raises(UserError, match="mnist_sample is streamed"):
        fit(config, make_task)


def test_showing_the_mesh_creates_no_folder(tmp_path, capsys):
    config = dataclasses.replace(small(tmp_path / "run"), mesh=Mesh(1, 1, 2, show=True))
    assert fit(config, make_task) is None
    assert "8×8/tensor" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_the_report_shows_every_metric_and_figure_and_needs_no_network(finished):
    config, _ = finished
    page = Path(config.run.dir, "report.html").read_text()
    for word in ("test accuracy", "<h3>loss", "<h3>grad norm", "Attention of block 1 of 1", "optim.ema"):
        assert word in page
    pictures, mistakes = list(Path(config.run.dir, "pictures").glob("*.png")), page.count("<figcaption>true ")
    assert len(pictures) >= 4 and mistakes > 0
    assert page.count("src='data:image/png") == len(pictures) + mistakes == page.count(" src=")


def test_the_mistakes_are_those_of_the_last_evaluation(finished):
    config, state = finished
    source = open_source(config.data, config.data.test_split)
    examples = source.gather(np.arange(24))
    judge = jax.jit(make_task(config, source).probabilities)
    probabilities = np.asarray(judge(state, examples))
    mistakes = read_mistakes(Path(config.run.dir))
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (examples["label"], probabilities.argmax(axis=1)), 1)
    np.testing.assert_array_equal(mistakes["confusion"], expected)
    assert np.trace(expected) / 24 == pytest.approx(lines(config)[-1]["accuracy"])
    for mistake in mistakes["worst"]:
        row = probabilities[mistake["example"]]
        assert (mistake["label"], mistake["predicted"]) == (examples["label"][mistake["example"]], row.argmax())
        assert mistake["probability"] == pytest.approx(row.max(), abs=1e-4)


def test_deleted_mistakes_are_written_again_by_the_same_command(finished, tmp_path):
    config, _ = finished
    again = dataclasses.replace(config, run=dataclasses.replace(config.run, dir=str(tmp_path / "run")))
    shutil.copytree(config.run.dir, tmp_path / "run")
    (tmp_path / "run" / "mistakes.json").unlink()
    fit(again, make_task)
    before, after = (read_mistakes(Path(folder)) for folder in (config.run.dir, tmp_path / "run"))
    assert after == before is not None


def test_a_browser_can_watch_a_running_run(tmp_path):
    config, pages = small(tmp_path / "run"), []

    def make_watched_task(config, source):
        task = make_task(config, source)

        def evaluate(state, batch):
            page = Path(config.run.dir, "report.html")
            jax.debug.callback(lambda: pages.append(page.read_text() if page.exists() else None))
            return task.evaluate(state, batch)

        return dataclasses.replace(task, evaluate=evaluate)

    fit(config, make_watched_task)
    pages.append(Path(config.run.dir, "report.html").read_text())
    assert pages[0] is None  # before the first evaluation
    middle, end = pages[-2:]
    assert "Not finished: step 3 of 5" in middle and "Attention of block 1 of 1, the last one" in middle
    assert "Finished: 5 of 5 steps" in end


@pytest.mark.parametrize("on_save_error", ["stop", "retry"])
def test_without_disk_space_for_the_report_a_run_stops_unless_allowed(tmp_path, monkeypatch, capsys, on_save_error):
    config = small(tmp_path / "run")
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, on_save_error=on_save_error))
    full = iter([OSError(errno.ENOSPC, "No space left on device", "report.html")])

    def write(folder):
        if (error := next(full, None)) is not None:
            raise error
        write_report(folder)

    monkeypatch.setattr("train.engine.publisher.write_report", write)
    if on_save_error == "stop":
        with pytest.raises(RunStopped, match=r"cannot use report\.html: No space left"):
            fit(config, make_task)
    else:
        fit(config, make_task)
        assert "warning: cannot use report.html: No space left" in capsys.readouterr().out
        assert "Finished: 5 of 5 steps" in Path(config.run.dir, "report.html").read_text()


def make_task_that(act):
    """Returns a make_task whose first evaluation calls `act`."""

    def make(config, source):
        task = make_task(config, source)

        def evaluate(state, batch):
            act()  # only when JAX traces the function
            return task.evaluate(state, batch)

        return dataclasses.replace(task, evaluate=evaluate)

    return make


@pytest.mark.parametrize("act", [shutil.rmtree, lambda folder: folder.rename(folder.with_name("moved"))])
def test_a_run_whose_folder_disappears_stops_and_creates_no_new_one(tmp_path, act):
    folder = tmp_path / "run"
    with pytest.raises(RunStopped, match=f"the run folder {folder} was deleted, moved or replaced while the run was "):
        fit(small(folder), make_task_that(lambda: act(folder)))
    assert not folder.exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "timing.jsonl", "task.json", "config.json"])
def test_a_run_writes_a_deleted_file_again(finished, tmp_path, name):
    config = with_run(finished[0], tmp_path / "run")
    fit(config, make_task_that(lambda: (tmp_path / "run" / name).unlink()))
    assert lines(config) == lines(finished[0])
    assert read_record(tmp_path / "run").state == "finished"
    assert [row["step"] for row in lines(config, "timing")] == [2, 4, 5]


def test_a_run_that_may_not_write_its_pictures_stops_in_one_line(tmp_path):
    """A file instead of the folder gives the same kind of error as a folder of another user, also for root."""
    folder = tmp_path / "run"
    with pytest.raises(RunStopped, match=r"cannot use .*/pictures.*: .*\. No checkpoint in .*/run"):
        fit(small(folder), make_task_that(lambda: (folder / "pictures").write_text("")))


def test_the_best_checkpoint_is_the_best_by_the_scores_in_the_checkpoint(finished, tmp_path, capsys):
    """A digit of metrics.jsonl that flips after the save is named and does not change which checkpoint is best."""
    config = with_run(finished[0], tmp_path / "run", steps=9, save_every=3)
    fit(config, make_task)
    capsys.readouterr()
    rows = lines(config)
    assert [row["step"] for row in rows if row["split"] == "test"] == [3, 6, 9]
    shutil.rmtree(Path(config.run.dir, "checkpoints", "9"))
    path = Path(config.run.dir, "metrics.jsonl")
    changed = [row | {"accuracy": 0.99} if (row["step"], row["split"]) == (3, "test") else row for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in changed))
    fit(config, make_task)
    told = capsys.readouterr().out
    assert "rows of " in told and "changed after the checkpoint was saved. The best checkpoint is chosen" in told
    progress = json.loads(Path(config.run.dir, "checkpoints", "9", "progress", "metadata").read_text())
    assert progress["scores"]["3"] == next(
        row["accuracy"] for row in rows if row["step"] == 3 and row["split"] == "test"
    )


SAVED = {"sums": {"loss": 3.0}, "count": 2, "seconds": 1.5, "lines": 4, "scores": {"3": 0.5}, "devices": "1 CPU"}


@pytest.mark.parametrize(
    "change",
    [
        {"count": -5},
        {"count": 10**30},
        {"count": None},
        {"seconds": math.inf},
        {"sums": {"loss": math.nan}},
        {"sums": [1]},
        {"scores": {"3": math.nan}},
        {"scores": {"x": 1.0}},
    ],
)
def test_impossible_progress_in_a_checkpoint_is_refused(change):
    """The checkpoint may come from someone else, with right checksums."""
    assert _saved_progress(None, 9, SAVED).scores == {3: 0.5}
    with pytest.raises(UserError, match="the progress in the checkpoint of step 9 is damaged"):
        _saved_progress(None, 9, SAVED | change)


def test_devices_in_a_checkpoint_cannot_print_lines():
    assert _saved_progress(None, 9, SAVED | {"devices": "1 CPU\nstep 9"}).devices == r"1 CPU\nstep 9"


def test_a_checkpoint_beyond_the_last_step_is_refused(finished, tmp_path):
    config = with_run(finished[0], tmp_path / "run")
    shutil.copytree(finished[0].run.dir, config.run.dir)
    (tmp_path / "run" / "checkpoints" / "5").rename(tmp_path / "run" / "checkpoints" / "4000")
    with pytest.raises(UserError, match=r"--run\.steps must be at least 4000, the step of the last checkpoint, got 5"):
        fit(config, make_task)


def test_figures_receive_as_many_images_as_the_task_requests(finished, tmp_path):
    """A mask marks the padding."""
    config, _ = finished
    shutil.copytree(config.run.dir, tmp_path / "run")
    config = dataclasses.replace(
        config, run=dataclasses.replace(config.run, dir=str(tmp_path / "run")), mesh=Mesh(2, 1, 1)
    )

    def figures(state, batch):
        return {"filled_up": Grid(batch["mask"][None, None, None].astype(float), "White where there is an image.")}

    def make_other_task(config, source):
        return dataclasses.replace(make_task(config, source), figures=figures, figure_examples=27)

    fit(config, make_other_task)
    row = np.asarray(Image.open(tmp_path / "run" / "pictures" / "filled_up.png").convert("L"))[0]
    zoom = len(row) // 28  # 27 padded to 28 for two devices
    np.testing.assert_array_equal(row, np.repeat([255] * 24 + [0] * 4, zoom))
