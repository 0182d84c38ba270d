"""Writes the TensorBoard event file of a run."""

import json
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from PIL import Image

from configs.base import Config
from train.config.flat import flatten
from train.config.tree import config_to_tree
from train.loggers.trackers import MetricRow, PictureFile
from train.run.atomic import write_atomic
from train.run.folder import RunFolder


class TensorBoard:
    """Logs to one event file, which is rewritten when a run starts or resumes.

    The file keeps its name, and the same config and rows give the same number of bytes. So a running TensorBoard
    continues reading at the right place.
    """

    name = "TensorBoard"

    def start(self, folder: RunFolder, config: Config, rows: Sequence[MetricRow], say: Callable[[str], None]) -> None:
        # The type is Any, because protobuf creates these classes at import, where type checkers cannot see them.
        self._event: Any = import_module("tensorboardX.proto.event_pb2")
        self._summary: Any = import_module("tensorboardX.proto.summary_pb2")
        self._path = folder.tensorboard / "events.out.tfevents.run"
        folder.tensorboard.mkdir(exist_ok=True)
        options = flatten(config_to_tree(config))
        # Four spaces make a line a code block in Markdown.
        text = "".join(f"    {name}: {json.dumps(value)}\n" for name, value in options.items())
        began = rows[0].wall_time if rows else time.time()
        head = [
            self._event.Event(wall_time=began, file_version="brain.Event:2"),
            self._strings(0, began, "config", "text", text.encode()),
        ]
        write_atomic(self._path, b"".join(map(_record, [*head, *map(self._scalars, rows)])))

    def log_row(self, row: MetricRow) -> None:
        self._append(self._scalars(row))

    def log_pictures(self, step: int, pictures: Mapping[str, PictureFile]) -> None:
        for name, (path, caption) in pictures.items():
            with Image.open(path) as image:
                size = [str(side).encode() for side in image.size]
            strings = (*size, path.read_bytes())
            self._append(self._strings(step, time.time(), f"pictures/{name}", "images", *strings, description=caption))

    def finish(self, failed: bool) -> None:
        pass  # No file is open, and every event is written.

    def _append(self, event: Any) -> None:
        with self._path.open("ab") as file:
            file.write(_record(event))

    def _scalars(self, row: MetricRow) -> Any:
        values = [self._summary.Summary.Value(tag=tag, simple_value=value) for tag, value in row.values.items()]
        return self._event.Event(step=row.step, wall_time=row.wall_time, summary={"value": values})

    def _strings(
        self, step: int, wall_time: float, tag: str, plugin: str, *strings: bytes, description: str = ""
    ) -> Any:
        """Makes an event of one or more strings, which a plugin of TensorBoard shows."""
        value = {
            "tag": tag,
            "metadata": {"plugin_data": {"plugin_name": plugin}, "summary_description": description},
            "tensor": {
                "dtype": "DT_STRING",
                "string_val": strings,
                "tensor_shape": {"dim": [{"size": len(strings)}] if len(strings) > 1 else []},
            },
        }
        return self._event.Event(step=step, wall_time=wall_time, summary={"value": [value]})


def _record(event: Any) -> bytes:
    """Encodes an event as a TFRecord: length and content, each with a checksum."""
    from tensorboardX.record_writer import masked_crc32c

    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    return b"".join(part + struct.pack("<I", masked_crc32c(part)) for part in (length, content))
