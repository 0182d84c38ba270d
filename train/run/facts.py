"""Facts about a run for its report: sizes of the model and the data, versions, and how long each phase took.

Imports no JAX, so that the report starts quickly. Training stores the facts in task.json.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Facts:
    """The entry "facts" of `task.json`. Run folders of older versions have none, so every fact may be missing."""

    parameters: int | None = None
    """Number of the model's parameters."""
    examples: dict[str, int] = field(default_factory=dict)
    """Number of images: "train" and "test"."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of Python and of the libraries, in the last process."""
    started: str = ""
    """Time when the first process started, in UTC, as in 2025-11-29 14:31."""
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds of each phase, summed over all processes of the run."""

    def as_json(self) -> dict[str, Any]:
        """Returns the facts that are known."""
        return {name: value for name, value in asdict(self).items() if value}


def facts_from_json(content: Any) -> Facts:
    """Reads what `Facts.as_json` returned.

    Raises:
        ValueError: a fact has a wrong type.
    """
    facts = Facts(**content) if isinstance(content, dict) and content.keys() <= asdict(Facts()).keys() else None
    if (
        facts is None
        or type(facts.parameters) not in (int, type(None))
        or type(facts.started) is not str
        or not _maps_text_to(facts.examples, int)
        or not _maps_text_to(facts.versions, str)
        or not _maps_text_to(facts.phases, int, float)
    ):
        raise ValueError(f"the facts are damaged, got {content!r:.100}")
    return facts


def _maps_text_to(found: Any, *kinds: type) -> bool:
    return isinstance(found, dict) and all(type(value) in kinds for value in found.values())


class Phases:
    """A stopwatch for the phases of a process. Time outside `measure` is the phase "training"."""

    def __init__(self, began: float, before: Mapping[str, float]):
        """The time from `began` until now is the phase "start".

        Args:
            began: start of the process, from `time.perf_counter`.
            before: seconds of each phase in earlier processes.
        """
        self._began, self._before = began, dict(before)
        self._measured = {"start": time.perf_counter() - began}

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Adds the time inside the context to a phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._measured[phase] = self._measured.get(phase, 0.0) + time.perf_counter() - began

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each phase up to now, also in earlier processes."""
        rest = time.perf_counter() - self._began - sum(self._measured.values())
        now = self._measured | {"training": rest}
        return {name: round(self._before.get(name, 0.0) + now.get(name, 0.0), 1) for name in self._before | now}
