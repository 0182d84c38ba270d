"""Reads labeled images from ArrayRecord files, by record number."""

import errno
import os
import resource
import sys
from collections.abc import Sequence
from typing import NamedTuple

from array_record.python.array_record_data_source import ArrayRecordDataSource, FileInstruction
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from train.process.errors import UserError
from w2jax.text import one_line


class Record(NamedTuple):
    """One example."""

    image: bytes
    """An encoded image file."""
    label: int


class Records:
    """The records of a split, numbered from 0. ArrayRecord verifies the checksum of each record that it reads.

    Files that were read stay open, if the split has at most a quarter of the files that the process may open. Otherwise
    each call of `read` opens and closes its files, because several splits may be open and checkpoints need files too.
    """

    def __init__(self, source_name: str, files: Sequence[FileInstruction]) -> None:
        """Opens each file once and reads the number of records at its end.

        Args:
            source_name: the dataset and split, for error messages.
            files: TFDS's file instructions: the files, and the records to use of each.

        Raises:
            UserError: a file is missing, is damaged or has the wrong number of records.
        """
        for file in files:
            _check(source_name, file)
        self._source_name, self._records, self._files = source_name, ArrayRecordDataSource(list(files)), len(files)

    def __len__(self) -> int:
        return len(self._records)

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Returns the records at `indices`, which may be in any order and repeated.

        Raises:
            UserError: a record is damaged, or has no image or no label. The message gives the record's number.
        """
        try:
            contents = self._contents(indices)
        except RuntimeError as error:  # ArrayRecord does not say which record is damaged. Bisect to find it.
            if len(indices) > 1:
                half = len(indices) // 2
                self.read(indices[:half])
                self.read(indices[half:])
            number = indices[0] if len(indices) == 1 else "of a batch"
            _check_limit(self._source_name, error)
            raise UserError(
                f"{self._source_name}, record {number}: a file is damaged ({_reason(error)}). "
                "Prepare the dataset again."
            ) from error
        return [self._parse(index, content) for index, content in zip(indices, contents, strict=True)]

    def read_file_names(self, indices: Sequence[int]) -> list[str]:
        """Returns the feature `file_name` of the records at `indices`, or "" for a dataset without this feature.

        `train.prepare folder` and many datasets of TFDS store it. If a file is damaged meanwhile, all names are "": a
        run whose images are in memory still ends well.
        """
        example = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]  The class is generated at run time.
        try:
            features = [example.FromString(content).features.feature for content in self._contents(indices)]
        except (DecodeError, RuntimeError):
            return [""] * len(indices)
        names = [feature["file_name"].bytes_list.value if "file_name" in feature else () for feature in features]
        return [b"".join(name[:1]).decode(errors="replace") for name in names]

    def _contents(self, indices: Sequence[int]) -> list[bytes]:
        most = _most_open_files()
        if self._files <= most:
            return list(self._records.__getitems__(indices))
        contents = []
        for start in range(0, len(indices), most):
            with self._records:  # Closes its files at the end.
                contents += self._records.__getitems__(indices[start : start + most])
        return contents

    def _parse(self, index: int, content: bytes) -> Record:
        try:
            example = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]  The class is generated at run time.
            features = example.FromString(content).features.feature
            (image,), (label,) = features["image"].bytes_list.value, features["label"].int64_list.value
        except (DecodeError, ValueError) as error:
            raise UserError(
                f"{self._source_name}, record {index} must have one image and one label ({_reason(error)}). "
                "Prepare the dataset again."
            ) from error
        return Record(image, label)


def _check(source_name: str, file: FileInstruction) -> None:
    try:
        # No read-ahead. It would read a whole file whose end is missing.
        reader = ArrayRecordReader(file.filename, options="readahead_buffer_size:0", file_reader_buffer_size=32768)
        count = reader.num_records()
        reader.close()
    except RuntimeError as error:
        _check_limit(source_name, error)
        raise UserError(
            f"{source_name}: {file.filename} is damaged or missing ({_reason(error)}). Prepare the dataset again."
        ) from error
    if count != file.examples_in_shard:
        raise UserError(
            f"{source_name}: {file.filename} must have {file.examples_in_shard} records, got {count}. "
            "The file is damaged or belongs to another dataset. Prepare the dataset again."
        )


def _most_open_files() -> int:
    """A quarter of the files that this process may open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else max(limit // 4, 1)


def _check_limit(source_name: str, error: Exception) -> None:
    """Raises UserError if `error` is that this process has too many open files. ArrayRecord gives the cause as text."""
    if os.strerror(errno.EMFILE) in str(error):
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        raise UserError(
            f"{source_name}: the limit of open files must be higher, got {limit:,}. Raise the hard limit: "
            f"ulimit -Hn {4 * limit}"
        ) from error


def _reason(error: Exception) -> str:
    return one_line(str(error))
