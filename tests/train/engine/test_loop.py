"""The loop around the steps: evaluation, checkpoints, streaming, reports."""

import dataclasses
import errno
import logging
import os
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
from runs import lines, small

from configs.base import Distributed, Mesh
from train.data import open_source
from train.engine.loop import fit
from train.process.errors import RunStopped, UserError
from train.report.mistakes import read_mistakes
from train.report.page import write_report
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


def test_metrics_are_logged_when_the_config_says_and_at_the_end(finished):
    config, _ = finished
    steps = [(line["split"], line["step"]) for line in lines(config)]
    assert steps == [("train", 2), ("test", 3), ("train", 4), ("train", 5), ("test", 5)]
    assert [line["step"] for line in lines(config, "timing")] == [2, 4, 5]
    assert all(line["examples_per_second"] > 0 for line in lines(config, "timing"))
    assert {line["devices"] for line in lines(config, "timing")} == {"1 CPU device"}


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
    for word in ("test accuracy", "<h3>loss", "<h3>grad norm", "Attention of the last block", "optim.ema"):
        assert word in page
    pictures, mistakes = list(Path(config.run.dir, "pictures").glob("*.png")), page.count("<figcaption>true ")
    assert len(pictures) >= 4 and mistakes > 0
    assert page.count("src='data:image/png") == len(pictures) + mistakes == page.count(" src=")


def test_the_mistakes_are_those_of_the_last_evaluation(finished):
    config, state = finished
    source = open_source(config.data, config.data.test_split)
    examples = source.gather(np.arange(24))
    judge = jax.jit(make_task(config, source).probabilities)
    probabilities = np.asarray(judge(state, examples["image"]))
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
    assert "Not finished: step 3 of 5." in middle and "Attention of the last block" in middle
    assert "Finished: step 5 of 5." in end


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
        with pytest.raises(RunStopped, match=r"cannot write report\.html: No space left"):
            fit(config, make_task)
    else:
        fit(config, make_task)
        assert "warning: cannot write report.html: No space left" in capsys.readouterr().out
        assert "Finished: step 5 of 5." in Path(config.run.dir, "report.html").read_text()


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
