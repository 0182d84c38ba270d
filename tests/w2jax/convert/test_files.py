"""Weights come back from files bit for bit, only weights are read, and a failed write changes nothing."""

import json
import pickle
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from containers import container, entry, names, npy, peak, refused
from hypothesis import given, settings
from hypothesis import strategies as st

from w2jax.convert.files import read_weights, write_weights
from w2jax.convert.lazy_tensor import BFLOAT16, LazyTensor, from_arrays

RNG = np.random.default_rng(0)
ARRAYS = {
    "mask": RNG.random(6) < 0.5,
    "net.weight": RNG.standard_normal((3, 5), np.float32),
    "net.bf16": RNG.standard_normal((2, 7)).astype(BFLOAT16),
    "half": RNG.standard_normal((4, 1, 2)).astype(np.float16),
    "steps": np.array(-(2**40)),
    "gain": np.array(1.5, BFLOAT16),
    "empty": np.zeros((0, 11), np.float32),
    "fortran": np.asfortranarray(RNG.standard_normal((8, 9))),
    **{f"int/{kind}{size}": RNG.integers(0, 100, 13).astype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)},
}
TENSORS = from_arrays(ARRAYS)
METADATA = {"format": "pt", "wörd": "line\nend"}
FILES = ("a.safetensors", "a.npz", "a.pt", "a.pth", "pytorch_model.bin", "folder")
BIG = 1_000_000  # number of float32 values


def big(names: str) -> dict[str, LazyTensor]:
    """Returns tensors that are created only when they are read."""
    return {
        name: LazyTensor((BIG,), np.dtype(np.float32), lambda i=i: np.full(BIG, i, np.float32))
        for i, name in enumerate(names)
    }


def assert_same(found: Mapping[str, LazyTensor], wanted: Mapping[str, np.ndarray]) -> None:
    assert list(found) == list(wanted)
    for key, array in wanted.items():
        got = found[key].read()
        assert (got.dtype, got.shape) == (array.dtype, array.shape) == (found[key].dtype, found[key].shape), key
        assert got.tobytes() == array.tobytes(), key


class Evil:
    """An object whose unpickling writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("name", FILES)
def test_every_file_returns_the_bits_that_were_written(tmp_path: Path, name: str) -> None:
    torchs = name not in ("a.safetensors", "a.npz", "folder")
    write_weights(tmp_path / name, TENSORS, METADATA)
    found = read_weights(str(tmp_path / name))
    assert_same(found.tensors, ARRAYS)
    assert found.metadata == ({} if torchs else METADATA)
    assert found.config is None
    assert found.path == tmp_path / name / ("model.safetensors" * (name == "folder"))
    write_weights(tmp_path / name, {"one": TENSORS["half"]})
    assert_same(read_weights(tmp_path / name).tensors, {"one": ARRAYS["half"]})
    assert read_weights(tmp_path / name).metadata == {}
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("name", FILES)
def test_arrays_that_are_read_only_or_views_are_written(tmp_path: Path, name: str) -> None:
    arrays = {"jax": ARRAYS["net.bf16"], "turned": ARRAYS["net.weight"].T, "reversed": ARRAYS["half"][::-1]}
    write_weights(tmp_path / name, from_arrays(arrays | {"jax": jnp.asarray(arrays["jax"])}))
    assert_same(read_weights(tmp_path / name).tensors, arrays)


@pytest.mark.parametrize("name", FILES)
def test_an_empty_set_of_tensors_is_written_and_read(tmp_path: Path, name: str) -> None:
    write_weights(tmp_path / name, {}, shard_bytes=1 if name == "folder" else None)
    assert read_weights(tmp_path / name).tensors == {}


def test_torch_and_jax_arrays_are_accepted_as_tensors() -> None:
    base = torch.from_numpy(ARRAYS["net.weight"].copy())
    assert_same(
        from_arrays(
            {
                "bf16": base.bfloat16().t(),
                "parameter": torch.nn.Parameter(base[:, 1:3]),
                "scalar": torch.tensor(1.5, dtype=torch.bfloat16),
                "jax": jnp.asarray(ARRAYS["net.bf16"]),
                "big-endian": ARRAYS["steps"].astype(">i8"),
                "number": np.float16(0.5),
            }
        ),
        {
            "bf16": ARRAYS["net.weight"].astype(BFLOAT16).T,
            "parameter": ARRAYS["net.weight"][:, 1:3],
            "scalar": ARRAYS["gain"],
            "jax": ARRAYS["net.bf16"],
            "big-endian": ARRAYS["steps"],
            "number": np.array(0.5, np.float16),
        },
    )
    assert np.shares_memory(from_arrays({"a": base})["a"].read(), base.numpy())


@pytest.mark.parametrize(
    "value",
    [
        [1.0, 2.0],
        3.0,
        None,
        np.array([None]),
        np.array(["text"]),
        jax.random.key(0),
        torch.eye(3).to_sparse(),
        torch.zeros(2, device="meta"),
        torch.zeros(2, dtype=torch.float8_e4m3fn),
        torch.nn.Linear(2, 3),
    ],
)
def test_a_value_that_is_not_an_array_of_numbers_is_named(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^'the key' must be "):
        from_arrays({"the key": value})


def test_the_safetensors_library_reads_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_weights(path, TENSORS, METADATA)
    found = safetensors.torch.load_file(path)
    assert found.keys() == ARRAYS.keys()
    for key, tensor in from_arrays(found).items():
        assert_same({key: tensor}, {key: ARRAYS[key]})
    with safetensors.safe_open(path, "np") as opened:
        assert opened.metadata() == METADATA
        assert_same(from_arrays({"w": opened.get_tensor("net.weight")}), {"w": ARRAYS["net.weight"]})


def test_we_read_what_the_safetensors_library_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    ours = {key: np.ascontiguousarray(array).reshape(array.shape) for key, array in ARRAYS.items()}
    tensors = {
        key: torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) if array.dtype == BFLOAT16 else array
        for key, array in ours.items()
    }
    safetensors.torch.save_file({key: torch.as_tensor(tensor) for key, tensor in tensors.items()}, path, METADATA)
    found = read_weights(path)
    assert_same({key: found.tensors[key] for key in ours}, ours)
    assert len(found.tensors) == len(ours) and found.metadata == METADATA


def test_every_tensor_of_a_safetensors_file_is_aligned(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_weights(path, TENSORS, METADATA)
    content = path.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    for key, array in ARRAYS.items():
        assert (start + header[key]["data_offsets"][0]) % array.dtype.itemsize == 0, key


def test_numpy_reads_our_npz(tmp_path: Path) -> None:
    write_weights(tmp_path / "a.npz", TENSORS, METADATA)
    with np.load(tmp_path / "a.npz") as found:
        assert found.files == list(ARRAYS)
        for key, array in ARRAYS.items():
            np.testing.assert_array_equal(found[key].view(array.dtype), array)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_we_read_what_numpy_writes(tmp_path: Path, save: Callable[..., None]) -> None:
    arrays = ARRAYS | {"big-endian": np.arange(5, dtype=">f4"), "complex": np.array([1 + 2j])}
    save(tmp_path / "a.npz", **arrays)
    native = {key: array.astype(array.dtype.newbyteorder("=")) for key, array in arrays.items()}
    assert_same(read_weights(tmp_path / "a.npz").tensors, native)
    assert read_weights(tmp_path / "a.npz").metadata == {}


def test_a_foreign_comment_in_a_zip_archive_is_not_metadata(tmp_path: Path) -> None:
    write_weights(tmp_path / "a.npz", TENSORS)
    for comment in (b"made by hand", b"\xff", b'{"a": 1}', b"[]"):
        with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
            archive.comment = comment
        assert read_weights(tmp_path / "a.npz").metadata == {}


def test_torch_reads_our_pt(tmp_path: Path) -> None:
    write_weights(tmp_path / "a.pt", TENSORS)
    found = torch.load(tmp_path / "a.pt", weights_only=True)
    assert found["net.bf16"].dtype == torch.bfloat16
    assert_same(from_arrays(found), ARRAYS)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
def test_a_state_dict_is_found_in_a_checkpoint(tmp_path: Path, wrapper: str | None, zipped: bool) -> None:
    module = torch.nn.Linear(3, 2).bfloat16()
    state = module.state_dict()
    content = state if wrapper is None else {"epoch": 3, "optimizer": {"state": {}}, wrapper: state}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    found = read_weights(tmp_path / "a.pt").tensors
    assert_same(found, {key: tensor.read() for key, tensor in from_arrays(state).items()})


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (torch.zeros(2), "must contain a dict of tensors by name, got Tensor"),
        ({"a": torch.zeros(2), "epoch": 3}, "got int under 'epoch' and no dict under these names"),
        ({1: torch.zeros(2)}, "got Tensor under 1"),
        ({"model": {"a": torch.zeros(2)}, "state_dict": {"b": torch.zeros(3)}}, "dicts under 'state_dict' and 'model'"),
        ({"model": {"a": torch.zeros(2), "b": [1]}}, "'b' must be an array of NumPy, JAX or torch, got list"),
        ({"a": torch.eye(3).to_sparse()}, "'a' must be a dense torch tensor"),
    ],
)
def test_a_pt_file_of_other_objects_is_refused(tmp_path: Path, content: Any, wrong: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=wrong):
        read_weights(tmp_path / "a.pt")


def test_without_torch_the_error_names_the_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_weights(tmp_path / "a.pt", TENSORS)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"reading .*a.pt needs torch. Run pip install torch"):
        read_weights(tmp_path / "a.pt")
    with pytest.raises(ImportError, match=r"writing .*a.pt needs torch. Run pip install torch"):
        write_weights(tmp_path / "a.pt", {})
    for name in ("a.npz", "a.safetensors"):
        write_weights(tmp_path / name, TENSORS)
        assert_same(read_weights(tmp_path / name).tensors, ARRAYS)
    assert names(tmp_path) == ["a.npz", "a.pt", "a.safetensors"]


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "pytorch_model.bin", "a.npz", "a.safetensors"])
def test_code_in_a_file_does_not_run(tmp_path: Path, name: str) -> None:
    target = tmp_path / "evil"
    content = {"weight": Evil(target)}
    torch.save(content, tmp_path / "zipped")
    torch.save(content, tmp_path / "legacy", _use_new_zipfile_serialization=False)
    plain = pickle.dumps(content, protocol=2)
    for pickled in (plain, (tmp_path / "zipped").read_bytes(), (tmp_path / "legacy").read_bytes()):
        message = refused(tmp_path / name, pickled)
        assert name in ("a.npz", "a.safetensors") or "must contain a dict of tensors by name" in message
        assert not target.exists()
    pickle.loads(plain)
    assert target.exists()  # so the pickle was harmful


def test_an_object_array_in_an_npz_is_refused_and_its_code_does_not_run(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", good=ARRAYS["half"], evil=np.array([Evil(tmp_path / "evil")]))
    assert "'evil.npy' must be an array of numbers, got pickled objects" in refused(tmp_path / "a.npz")
    assert names(tmp_path) == ["a.npz"]


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz", "a.pt", "legacy.pt"])
def test_a_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    write_weights(tmp_path / name, TENSORS, METADATA)
    if name == "legacy.pt":
        arrays = {key: torch.ones(3, 5) for key in "ab"}
        torch.save(arrays, tmp_path / name, _use_new_zipfile_serialization=False)
    content = (tmp_path / name).read_bytes()
    for cut in (0, 1, 7, 8, 9, 60, len(content) // 3, len(content) // 2, len(content) - 9, len(content) - 1):
        message = refused(tmp_path / name, content[:cut])
        if name == "a.safetensors" and cut > 8:
            assert f"is truncated: its header requires {len(content) if cut > 2000 else ''}" in message
            assert message.endswith(f"bytes, got {cut}. Download it again")


ONE = {"a": entry([2], [0, 8])}


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"\x80\x02}q\0. a pickle", "is not a safetensors file: its header must have at most 100000000 bytes, got "),
        (
            struct.pack("<Q", 100_000_001),
            "is not a safetensors file: its header must have at most 100000000 bytes, got 100000001",
        ),
        (container(ONE, bytes(9)), "has bytes that do not belong to a tensor: its header requires 77 bytes, got 78"),
        (container(ONE, bytes(7)), "is truncated: its header requires 77 bytes, got 76"),
        (container([]), "header must be a JSON object, got a list"),
        (container(b"{"), "header must be valid JSON: "),
        (container(b"{\xff}"), "header must be valid JSON: "),
        (container(b"[" * 100_000), "header must be valid JSON: "),
        (container(b'{"a": 1, "b": 2, "a": 3}'), "header must be valid JSON: duplicate key 'a'"),
        (container({"a": {"dtype": "F32", "dtypo": 1}}), "'a' must be an object with dtype, shape and data_offsets"),
        (container({"a": 3}), "'a' must be an object with dtype, shape and data_offsets"),
        (container({"__metadata__": {"a": 1}}), "__metadata__ in .* must be an object of strings"),
        (container({"a": entry([2], [0, 4], "F16x")}, bytes(4)), "'a' must have one of the dtypes F64, .*, got 'F16x'"),
        (container({"a": entry([2], [0, 4], [])}, bytes(4)), "'a' must have one of the dtypes F64, "),
        (container({"a": entry([-2, -1], [0, 8])}, bytes(8)), "'a' must have a shape of at most"),
        (container({"a": entry([2.0], [0, 8])}, bytes(8)), "'a' must have a shape of at most"),
        (container({"a": entry([True], [0, 4])}, bytes(4)), "'a' must have a shape of at most"),
        (container({"a": entry(2, [0, 8])}, bytes(8)), "'a' must have a shape of at most"),
        (container({"a": entry([1] * 65, [0, 4])}, bytes(4)), "'a' must have a shape of at most 64"),
        (container({"a": entry([0, 2**62, 2], [0, 0])}), r"'a' must have a shape of less than 2\*\*63 bytes, got"),
        (container({"a": entry([0, 10**4000, 2], [0, 0])}), "'a' must have a shape of at most"),
        (container({"a": entry([2], [0, 8, 9])}, bytes(8)), "'a' must have data_offsets of two"),
        (container({"a": entry([2], [-8, 0])}, bytes(8)), "'a' must have data_offsets of two"),
        (container({"a": entry([2], [8, 0])}, bytes(8)), "'a' must have 8 bytes for F32 of shape"),
        (container({"a": entry([2], [0, 12])}, bytes(12)), "'a' must have 8 bytes for F32 of shape"),
        (container({"a": entry([2], [1, 9])}, bytes(9)), "'a' must begin at byte 0"),
        (container(ONE | {"b": entry([1], [4, 8])}, bytes(8)), "'b' must begin at byte 8"),
        (container(ONE | {"b": entry([1], [9, 13])}, bytes(13)), "'b' must begin at byte 8"),
        (container(ONE | {"b": entry([2**40], [8, 8 + 2**42])}, bytes(8)), "is truncated"),
    ],
)
def test_a_broken_safetensors_header_is_named(tmp_path: Path, content: bytes, wrong: str) -> None:
    assert re.search(wrong, refused(tmp_path / "a.safetensors", content))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, bytes]:
    paths = [tmp_path_factory.mktemp("whole") / name for name in ("a.safetensors", "a.npz")]
    for path in paths:
        write_weights(path, {key: TENSORS[key] for key in ("net.weight", "steps", "mask", "empty")}, METADATA)
    return {path: path.read_bytes() for path in paths}


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255)), min_size=1, max_size=4))
def test_files_with_flipped_bytes_are_read_or_refused(whole: dict[Path, bytes], flips: list[tuple[int, int]]) -> None:
    for path, content in whole.items():
        flipped = bytearray(content)
        for place, byte in flips:
            flipped[place % len(content)] = byte
        path.write_bytes(flipped)
        try:
            for tensor in read_weights(path).tensors.values():
                array = tensor.read()
                assert (array.shape, array.dtype) == (tensor.shape, tensor.dtype)
        except ValueError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize(
    ("member", "content", "wrong"),
    [
        ("a.txt", b"text", "must be a .npy file"),
        ("a.npy", b"text", "is not a complete .npz file"),
        ("a.npy", b"", "is not a complete .npz file"),
        ("a.npy", npy("(2,)", bytes(7)), "'a.npy' must have 74 bytes according to its header, got 73"),
        ("a.npy", npy("(2,)", bytes(9)), "'a.npy' must have 74 bytes according to its header, got 75"),
        ("a.npy", npy("(2,", bytes(8)), "is not a complete .npz file"),
        ("a.npy", npy("(-2, -1)", bytes(8)), "must have a shape of integers from 0"),
        ("a.npy", npy("(0, 10000000000000000000000)"), "is not a complete .npz file"),
        ("a.npy", npy(f"({'0, ' * 99})"), "is not a complete .npz file"),
        ("a.npy", npy("-" * 9000 + "1"), "has a broken header"),
        ("a.npy", npy("(2,)", bytes(8), "<U1"), "must be an array of numbers, got the dtype <U1"),
        ("a.npy", npy("(2,)", bytes(8), "V4"), "must be an array of numbers, got the dtype"),
        ("a.npy", b"\x93NUMPY\3\0" + npy("(2,)", bytes(8))[8:], "got the .npy version"),
    ],
)
def test_a_broken_member_of_an_npz_is_named(tmp_path: Path, member: str, content: bytes, wrong: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr(member, content)
    assert wrong in refused(tmp_path / "a.npz")


def test_unknown_compressions_and_duplicate_names_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.npy", npy("(2,)", bytes(8)))
    assert "must be uncompressed or compressed with deflate, got the compression 12" in refused(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("a.npy", npy("(2,)", bytes(8)))
        archive.writestr("a.npy", npy("(3,)", bytes(12)))
    assert "must have one array per name, got several arrays with the same name" in refused(tmp_path / "a.npz")


def test_an_npz_that_claims_more_than_deflate_can_compress_takes_no_memory(tmp_path: Path) -> None:
    claimed = 2**29
    content = npy(f"({claimed},)", bytes(10), "|u1")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", content)
    size = struct.pack("<I", len(content))
    lie = struct.pack("<I", len(content) + claimed - 10)
    raw = (tmp_path / "a.npz").read_bytes().replace(size, lie)
    assert peak(lambda: refused(tmp_path / "a.npz", raw)) < BIG


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_tensor_of_an_npz_is_found_by_its_checksum(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "a.npz", a=np.arange(9.0))
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        checksum = struct.pack("<I", archive.getinfo("a.npy").CRC)
    raw = (tmp_path / "a.npz").read_bytes()
    assert raw.count(checksum) == 2
    assert "Bad CRC-32" in refused(tmp_path / "a.npz", raw.replace(checksum, b"\1\2\3\4"))


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz"])
def test_a_file_that_changed_after_its_header_was_read_is_not_misread(tmp_path: Path, name: str) -> None:
    write_weights(tmp_path / name, from_arrays({"a": np.zeros(2), "b": np.ones(3)}))
    found = read_weights(tmp_path / name)
    write_weights(tmp_path / name, from_arrays({"b": np.ones(3), "a": np.zeros(2)}))
    with pytest.raises(ValueError, match=f"{name} has changed since its header was read. Read it again"):
        found.tensors["a"].read()


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz", "folder"])
def test_files_are_read_and_written_one_tensor_at_a_time(tmp_path: Path, name: str) -> None:
    tensors, size = big("abcdefghij"), 4 * BIG
    assert size < peak(lambda: write_weights(tmp_path / name, tensors)) < 1.5 * size
    assert peak(lambda: read_weights(tmp_path / name)) < 0.1 * size
    found = read_weights(tmp_path / name).tensors
    assert size <= peak(found["c"].read) < 1.5 * size
    assert found["c"].read()[-1] == 2


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz", "a.pt", "folder", "shards"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_failed_write_leaves_the_old_files_complete(tmp_path: Path, name: str, error: type[BaseException]) -> None:
    def fail() -> np.ndarray:
        raise error

    folder = tmp_path / name
    shard_bytes = 40 if name == "shards" else None
    if not folder.suffix:
        folder.mkdir()
    write_weights(folder, TENSORS, METADATA, shard_bytes=shard_bytes)
    before = names(tmp_path if folder.suffix else folder)
    new = dict(from_arrays({"a": np.ones(7), "b": np.ones(9)})) | {"z": TENSORS["half"]._replace(read=fail)}
    with pytest.raises(error):
        write_weights(folder, new, shard_bytes=shard_bytes)
    assert names(tmp_path if folder.suffix else folder) == before
    assert_same(read_weights(folder).tensors, ARRAYS)


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz", "a.pt", "folder"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (LazyTensor((2,), np.dtype(object), lambda: np.array([None, None])), "'wrong' must have .*, got object"),
        (LazyTensor((2,), np.dtype("U1"), lambda: np.array(["a", "b"])), "'wrong' must have .*, got <U1"),
        (TENSORS["half"]._replace(shape=(8,)), r"'wrong' must be float16 of shape \(8,\), got float16 of shape"),
        (TENSORS["half"]._replace(dtype=BFLOAT16), "'wrong' must be bfloat16 of shape"),
    ],
)
def test_a_tensor_that_a_file_cannot_store_is_named(tmp_path: Path, name: str, wrong: LazyTensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_weights(tmp_path / name, TENSORS | {"wrong": wrong})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_write_names_what_the_format_cannot_store(tmp_path: Path) -> None:
    complexes = from_arrays({"c": np.array([1j])})
    for name, tensors, options, wrong in (
        ("a.safetensors", complexes, {}, "'c' must have one of the dtypes .* for a safetensors file, got complex128"),
        ("a.safetensors", {"__metadata__": TENSORS["half"]}, {}, "must not have the name '__metadata__'. Rename it"),
        (
            "a.npz",
            {"a\0b": TENSORS["half"]},
            {},
            r"'a\\x00b' must not have the character 0, which ends names in zip files",
        ),
        ("a.npz", {}, {"metadata": {"a": "x" * 65_536}}, "at most 65535 bytes, got 65545. Shorten it"),
        ("a.npz", {}, {"metadata": {"a": "b", "c": 1}}, "metadata for .*a.npz must be a dict of strings"),
        ("a.npz", {}, {"configs": {"config.json": {}}}, "must be a folder or model.safetensors to have a config"),
        ("a.npz", {}, {"shard_bytes": 9}, "shard_bytes must be None for a single file, got 9"),
        ("folder", {}, {"shard_bytes": 0}, "shard_bytes must be at least 1, got 0"),
        ("folder", TENSORS, {"configs": {"config.json": {"a": {1, 2}}}}, "the config for .*folder must be JSON"),
        (
            "a.h5",
            {},
            {},
            "must be a folder or end with .safetensors, .npz, .pt, .pth, .bin, .ckpt, .tar, got the suffix .h5",
        ),
    ):
        with pytest.raises(ValueError, match=wrong):
            write_weights(tmp_path / name, tensors, **options)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    write_weights(tmp_path / "a.npz", complexes)
    assert_same(read_weights(tmp_path / "a.npz").tensors, {"c": np.array([1j])})


def test_a_folder_is_split_into_shards_of_the_requested_size(tmp_path: Path) -> None:
    tensors = from_arrays(
        {key: np.full(size, size, np.float32) for key, size in zip("abcde", (3, 2, 9, 1, 4), strict=True)}
    )
    write_weights(tmp_path, tensors, METADATA, {"config.json": {"hidden_size": 3}}, shard_bytes=20)
    shards = [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    assert names(tmp_path) == ["config.json", *shards, "model.safetensors.index.json"]
    assert [list(safetensors.numpy.load_file(tmp_path / shard)) for shard in shards] == [["a", "b"], ["c"], ["d", "e"]]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_bytes())
    assert index["metadata"] == {"total_size": 19 * 4}
    assert index["weight_map"] == dict(zip("abcde", [shards[i] for i in (0, 0, 1, 2, 2)], strict=True))
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        found = read_weights(path)
        assert_same(found.tensors, {key: tensor.read() for key, tensor in tensors.items()})
        assert (found.metadata, found.config) == (METADATA, {"hidden_size": 3})
        assert found.path == tmp_path / "model.safetensors.index.json"


def test_a_folder_that_is_written_again_contains_only_the_new_weights(tmp_path: Path) -> None:
    few, many = {"one": ARRAYS["half"]}, {key: np.full(size, size) for key, size in zip("abc", (2, 3, 5), strict=True)}
    (tmp_path / "model-of-mine.safetensors").touch()
    (tmp_path / "config.json").write_text('{"kept": 1}')
    for arrays, shard_bytes, files in ((many, 1, 4), (few, None, 1), (many, 40, 3), (many, 1, 4), (few, 1, 1)):
        write_weights(tmp_path, from_arrays(arrays), shard_bytes=shard_bytes)
        assert_same(read_weights(tmp_path).tensors, arrays)
        assert len(names(tmp_path)) == files + 2
        assert read_weights(tmp_path).config == {"kept": 1}
    write_weights(tmp_path, read_weights(tmp_path).tensors | from_arrays({"two": np.ones(3)}), shard_bytes=17)
    assert_same(read_weights(tmp_path).tensors, few | {"two": np.ones(3)})


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"a": "absent.safetensors"}, "names shards that are missing: absent.safetensors. Download them"),
        (
            {"a": "two.safetensors"},
            "'a' must be in the shard two.safetensors, but the shard does not have it",
        ),
        ({"b": None}, "'b' is in the shard two.safetensors, but the index does not name this shard for it"),
        (
            {"d": "two.safetensors"},
            "'d' must be in the shard two.safetensors, but the shard does not have it",
        ),
        ({"a": "../one.safetensors"}, r"in the same folder, got '../one.safetensors'"),
        ({"a": "..\\one.safetensors"}, r"in the same folder, got '..\\one.safetensors'"),
        ({"a": "/etc/one.safetensors"}, r"in the same folder, got '/etc/one.safetensors'"),
        ({"a": ".."}, r"in the same folder, got '..'"),
        ({"a": "one.pt"}, r"in the same folder, got 'one.pt'"),
        ({"a": 3}, "weight_map must be an object with a file name for each tensor name"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_named(tmp_path: Path, change: dict[str, Any], wrong: str) -> None:
    (tmp_path / "in").mkdir()
    for path in (tmp_path / "one.safetensors", tmp_path / "in" / "one.safetensors"):
        write_weights(path, from_arrays({"a": np.ones(2)}))
    write_weights(tmp_path / "in" / "two.safetensors", from_arrays({"b": np.ones(3), "c": np.ones(5)}))
    index = tmp_path / "in" / "model.safetensors.index.json"
    places = {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}
    index.write_text(json.dumps({"weight_map": places}))
    assert list(read_weights(index).tensors) == ["a", "b", "c"]
    changed = {key: name for key, name in (places | change).items() if name is not None}
    assert wrong in refused(index, json.dumps({"weight_map": changed}).encode())
    assert "weight_map must be" in refused(index, b"{}")
    assert "must be valid JSON" in refused(index, b"{")


def test_a_folder_is_read_from_its_best_known_file_or_its_only_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write_weights(folder / "any.npz", from_arrays({"npz": np.ones(2)}))
    (folder / "README.md").touch()
    assert list(read_weights(folder).tensors) == ["npz"]
    write_weights(folder / "other.pt", from_arrays({"pt": np.ones(2)}))
    assert "got any.npz, other.pt" in refused(folder)
    for name in ("model.npz", "pytorch_model.bin", "model.safetensors"):
        write_weights(folder / name, from_arrays({name: np.ones(2)}))
        assert (list(read_weights(folder).tensors), read_weights(folder).path) == ([name], folder / name)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"model.safetensors": "model.safetensors"}}')
    assert read_weights(folder).path == folder / "model.safetensors.index.json"
    (tmp_path / "bare").mkdir()
    assert "got none" in refused(tmp_path / "bare")


def test_a_config_belongs_to_files_named_as_on_the_hub(tmp_path: Path) -> None:
    config = {"layers": [1, 2], "name": "vit"}
    for name in ("model.safetensors", "model-ema.safetensors", "pytorch_model.bin"):
        write_weights(tmp_path / name, TENSORS, configs={"config.json": config})
        assert read_weights(tmp_path / name).config == config
    write_weights(tmp_path / "other.safetensors", TENSORS)
    other = read_weights(tmp_path / "other.safetensors")
    assert (other.config, other.own_config) == (config, False)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config.json must be a JSON object, got a list"):
        read_weights(tmp_path / "model.safetensors")


def test_a_path_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent.npz does not exist. Pass a weight file or a folder"):
        read_weights(tmp_path / "absent.npz")
    assert "got the suffix .h5" in refused(tmp_path / "a.h5", b"")
    assert "got the suffix (none)" in refused(tmp_path / "a", b"")
    known = "must be a folder or end with .safetensors, .safetensors.index.json, .npz, .pt, .pth, .bin"
    assert known in refused(tmp_path / "config.json", b"{}")


def test_a_lazy_array_may_be_written_over_its_own_file(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.npz", "a.pt"):
        write_weights(tmp_path / name, TENSORS)
        turned = dict(reversed(read_weights(tmp_path / name).tensors.items()))
        write_weights(tmp_path / name, turned)
        assert_same(read_weights(tmp_path / name).tensors, dict(reversed(ARRAYS.items())))
