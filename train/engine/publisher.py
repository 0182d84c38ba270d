"""Publishes the results of a run while it trains: metric files, terminal, trackers, pictures and report page."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

from train.engine.evaluator import Evaluator
from train.engine.setup import Setup
from train.loggers.console import RunConsole
from train.loggers.jsonl import JsonLines
from train.loggers.trackers import Trackers
from train.process.distributed import is_main_process
from train.process.errors import RunStopped, UserError
from train.report.mistakes import Predictions, write_mistakes
from train.report.page import write_report
from train.report.pictures import write_pictures
from train.run.facts import Phases
from train.run.files import format_duration
from train.run.folder import RunFolder
from train.run.record import TaskInfo
from train.task import Picture, State


class Publisher:
    """Writes metrics.jsonl, timing.jsonl, pictures and report.html, prints messages, and logs to the trackers.

    Use it as a context manager: inside, the files are open and the progress bar is shown.
    """

    def __init__(
        self, setup: Setup, folder: RunFolder, info: TaskInfo, trackers: Trackers, done: int, seconds_before: float
    ):
        """Continues after step `done`. Rows of later steps are deleted, because those steps run again.

        `info` is the content of task.json. `seconds_before` is the wall time of the run in earlier processes.
        """
        self._setup, self._folder, self._info, self._trackers, self._done = setup, folder, info, trackers, done
        self._began = setup.started - seconds_before
        self.phases = Phases(setup.started, info.facts.phases)
        self.lines = JsonLines(folder.metrics, done, is_main_process())
        self._timing = JsonLines(folder.timing, done, is_main_process())
        self.console = RunConsole(setup.config.run.steps, done, is_main_process())
        tests = [line for line in self.lines.restored if line.get("split") == "test"]
        last = tests[-1] if tests else {}
        self._tested = {name: value for name, value in last.items() if name not in ("step", "split")}

    def __enter__(self) -> "Publisher":
        with ExitStack() as stack:
            for part in (self.lines, self._timing, self.console):
                stack.enter_context(part)
            self._trackers.start(self.lines.restored, self._timing.restored, self.seconds, self.console.say)
            # If a tracker's options are wrong, `start` raises and the stack closes all parts.
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self._open.__exit__(*error)

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, summed over all its processes."""
        return time.perf_counter() - self._began

    def train_line(self, step: int, means: dict[str, float], steps_per_second: float) -> None:
        """Logs the means of the training metrics up to a step."""
        run, devices = self._setup.config.run, self._setup.program.devices
        speed = steps_per_second * run.batch_size
        self.lines.write(step=step, split="train", **means)
        self._timing.write(step=step, seconds=self.seconds, examples_per_second=speed, devices=devices)
        self._trackers.log_metrics(step, "train", means | {"examples_per_second": speed})
        left = format_duration((run.steps - step) / steps_per_second)
        self.console.speed(speed)
        self.console.line(step, "train", means, f"{speed:,.0f} examples/s  {left} left")

    def test_line(self, step: int, metrics: dict[str, float]) -> None:
        """Logs the metrics of the test split after a step."""
        self._tested = metrics
        self.lines.write(step=step, split="test", **metrics)
        self._trackers.log_metrics(step, "test", metrics)
        self.console.line(step, "test", metrics)

    def sync(self) -> None:
        """Waits until all rows are on disk.

        Raises:
            OSError: if they cannot be written.
            RunStopped: if the run folder is gone.
        """
        self._folder.check_in_place()
        self._folder.restore_files()
        self.lines.sync()
        self._timing.sync()

    def save_failed(self, failure: RunStopped | None) -> None:
        """If a checkpoint could not be written, stops the run or prints a warning, as `on_save_error` says."""
        if failure is None:
            return
        if self._setup.config.run.on_save_error == "stop":
            raise RunStopped(f"{failure}. Free disk space or repair the disk, then run the same command to resume")
        self.console.say(f"warning: {failure}. Training continues and saves the next checkpoint when it is due")

    def report(self, evaluator: Evaluator, state: State) -> None:
        """Writes the report of a run that is still training."""
        try:
            self._write_report(evaluator, state)
        except UserError as error:  # Someone has changed a file that the report shows.
            self.console.say(f"warning: {error}. Training continues without the report")
        except OSError as error:
            if self._setup.config.run.on_save_error == "stop":
                raise
            place = error.filename or self._folder.path
            self.console.say(f"warning: cannot use {place}: {error.strerror}. Training continues without the report")

    def finish(self, evaluator: Evaluator, state: State, predictions: Predictions | None) -> None:
        """Writes mistakes.json, the pictures and report.html, and prints the table of results."""
        if is_main_process() and predictions is not None:
            write_mistakes(self._folder.path, predictions, self._setup.test_source)
        pictures = self._write_report(evaluator, state)
        if not is_main_process():
            return
        step = int(state.step)
        self._trackers.log_pictures(step, pictures)
        is_new = self._done < step
        wall = self.seconds if is_new else self._setup.started - self._began
        metrics = {f"test {name}": f"{value:.4f}" for name, value in self._tested.items()}
        self.console.table(metrics | {"wall time": format_duration(wall)})
        self.console.say(f"run folder: {self._folder.path}")  # A table would cut a long path on a narrow terminal.

    def _write_report(self, evaluator: Evaluator, state: State) -> Mapping[str, Picture]:
        with self.phases.measure("report"):
            pictures = evaluator.figures(state)
        if is_main_process():
            self._folder.check_in_place()
            self._folder.restore_files()
            with self.phases.measure("report"):
                write_pictures(self._folder.path, pictures, self._setup.source.label_names)
            if self._done < int(state.step):
                facts = replace(self._info.facts, phases=self.phases.seconds)
                self._folder.write_task_info(replace(self._info, facts=facts))
            write_report(self._folder.path)
        return pictures
