"""Labelled images in ArrayRecord files, read by their number."""

from collections.abc import Sequence
from typing import NamedTuple

from array_record.python.array_record_data_source import ArrayRecordDataSource, FileInstruction
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from train.process.errors import UserError


class Record(NamedTuple):
    """One example."""

    image: bytes
    """A file that holds it."""
    label: int


class Records:
    """A split's records, numbered from 0. ArrayRecord compares the checksum of each that it reads."""

    def __init__(self, where: str, files: Sequence[FileInstruction]) -> None:
        """Opens each file once to look at its end, which says how many records it has.

        Args:
            where: the dataset and split, for errors.
            files: which records of which files, as TFDS's splits say.

        Raises:
            UserError: a file is missing, is not whole or has another number of records.
        """
        for file in files:
            _check(where, file)
        self._where, self._source = where, ArrayRecordDataSource(list(files))

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: Sequence[int]) -> list[Record]:
        """The records of those numbers, in any order, also repeated.

        Raises:
            UserError: one is damaged, or holds no image or no label; the text names it.
        """
        try:
            contents = self._source.__getitems__(indices)
        except RuntimeError as error:  # ArrayRecord's, which does not say whose.
            if len(indices) > 1:
                half = len(indices) // 2
                self.read(indices[:half])
                self.read(indices[half:])
            number = indices[0] if len(indices) == 1 else "of a batch"
            raise UserError(
                f"{self._where}, record {number}: a file is damaged; prepare it again ({_line(error)})"
            ) from error
        return [self._parsed(index, content) for index, content in zip(indices, contents, strict=True)]

    def _parsed(self, index: int, content: bytes) -> Record:
        try:
            example = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]  It is made at run time.
            features = example.FromString(content).features.feature
            (image,), (label,) = features["image"].bytes_list.value, features["label"].int64_list.value
        except (DecodeError, ValueError) as error:
            raise UserError(
                f"{self._where}, record {index}: wanted one image and one label; prepare it again ({_line(error)})"
            ) from error
        return Record(image, label)


def _check(where: str, file: FileInstruction) -> None:
    try:
        # Nothing ahead: of a file without an end, this would be all of it.
        reader = ArrayRecordReader(file.filename, options="readahead_buffer_size:0", file_reader_buffer_size=32768)
        found = reader.num_records()
        reader.close()
    except RuntimeError as error:
        raise UserError(f"{where}: {file.filename} is damaged or missing; prepare it again ({_line(error)})") from error
    if found != file.examples_in_shard:
        raise UserError(
            f"{where}: {file.filename} is damaged, or that of another dataset: wanted {file.examples_in_shard} "
            f"records, got {found}; prepare it again"
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
