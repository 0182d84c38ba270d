"""Files made to run code, use all memory or crash the reader: each is quickly rejected with a one-line error."""

import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from containers import container, entry, names, npy, peak, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from weights import example

from w2jax.convert import from_torch, load, to_torch
from w2jax.convert.__main__ import main
from w2jax.convert.files import read_weights, write_weights
from w2jax.convert.lazy_tensor import from_arrays
from w2jax.convert.vit_architecture import _depth, recognize
from w2jax.convert.vit_tables import FORMATS
from w2jax.serialize import module_to_json

MODULE, VARIABLES = example(depth=2)
TIMM, GOOGLE = (to_torch(MODULE, VARIABLES, form) for form in ("timm", "google"))
FEW = 50_000_000  # bytes of memory: about 1,000 times the size of a small file
LONG = "9" * 5000

FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SLOW = settings(FUZZ, max_examples=12)


def told(path: Path, **given: Any) -> str:
    """Returns the one-line error with which `load` and the command reject a file."""
    with pytest.raises(ValueError) as caught:
        load(path, **given)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 2000
    return message


# --- pickles ---


class Call:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_requests_gigabytes_gets_no_memory(tmp_path: Path, zipped: bool) -> None:
    content = {"w": torch.ones(3), "bomb": Call(bytearray, 2**36)}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    assert "Unsupported bytearray" in refused(tmp_path / "a.pt")


def test_a_tar_of_torchs_oldest_format_is_refused_without_being_unpacked(tmp_path: Path) -> None:
    import tarfile

    (tmp_path / "pickle").write_bytes(pickle.dumps(Call(Path.touch, tmp_path / "evil"), protocol=2))
    with tarfile.open(tmp_path / "a.pt", "w") as tar:
        for name in ("storages", "tensors", "pickle"):
            tar.add(tmp_path / "pickle", arcname=name)
        tar.add(tmp_path / "pickle", arcname="../evil")
    refused(tmp_path / "a.pt")
    assert names(tmp_path) == ["a.pt", "pickle"]


def test_a_compressed_archive_is_not_read_as_torchs(tmp_path: Path) -> None:
    torch.save(TIMM, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as whole, zipfile.ZipFile(tmp_path / "b.pt", "w", 8) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    assert "torch does not compress files" in refused(tmp_path / "b.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_one_number_expanded_to_a_billion_is_not_materialized(tmp_path: Path, zipped: bool) -> None:
    tensor = torch.ones(1).expand(2**30)
    torch.save({"a": tensor}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    assert "got 4294967296 (" in refused(tmp_path / "a.pt")


def test_attributes_that_a_pickle_adds_to_its_objects_are_not_called(tmp_path: Path) -> None:
    state = OrderedDict(a=torch.nn.Parameter(torch.ones(3)))
    state.__dict__ |= {"get": "no method"}  # the attribute survives saving and loading
    state["a"].numpy = "no method either"
    torch.save(state, tmp_path / "a.pt")
    assert torch.load(tmp_path / "a.pt", weights_only=True).__dict__ == {"get": "no method"}
    np.testing.assert_array_equal(read_weights(tmp_path / "a.pt").tensors["a"].read(), np.ones(3))


@pytest.mark.parametrize("version", ["2.4.1", "2.5.0+cu124", "2.9.1", "1.13"])
def test_a_torch_version_that_can_run_code_from_files_reads_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    write_weights(tmp_path / "a.pt", from_arrays(TIMM))
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(ImportError, match=r"reading .*a.pt needs torch 2.10 or newer, got "):
        read_weights(tmp_path / "a.pt")


# --- archives and headers ---


def test_an_npz_that_unpacks_to_a_hundred_times_its_bytes_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("w2jax.files._SMALL", 2**20)
    np.savez_compressed(tmp_path / "small.npz", a=np.zeros(2**20, np.uint8))
    assert read_weights(tmp_path / "small.npz").tensors["a"].read().sum() == 0
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(2**20, np.uint8), b=np.zeros(2**20, np.uint8))
    there = (tmp_path / "a.npz").stat().st_size
    assert f"got {2**21} (the file has {there} bytes)" in told(tmp_path / "a.npz")


def test_a_header_that_unpacks_to_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", b"\x93NUMPY\2\0" + struct.pack("<I", 2**27) + bytes(2**27))
    assert peak(lambda: refused(tmp_path / "a.npz")) < FEW


def test_a_header_of_a_million_tensors_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    content = container(b'{"a":[' + b"{}," * 10**7 + b"{}]}")
    (tmp_path / "a.safetensors").write_bytes(content)
    assert peak(lambda: refused(tmp_path / "a.safetensors")) < 3 * len(content)
    assert "at most 10000000 commas and opening brackets, got 20000003" in told(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz", "a.pt", "folder"])
def test_too_many_tensors_are_refused_by_reader_and_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shards = 4 if name == "folder" else None
    tensors = from_arrays({key: np.ones(1, np.float32) for key in "abc"})
    write_weights(tmp_path / name, tensors, shard_bytes=shards)
    monkeypatch.setattr("w2jax.convert.lazy_tensor.MAX_TENSORS", 2)
    assert "must have at most 2 tensors, got " in told(tmp_path / name)
    with pytest.raises(ValueError, match="must have at most 2 tensors, got 3"):
        write_weights(tmp_path / f"new-{name}", tensors, shard_bytes=shards)


def test_shards_are_not_read_beyond_the_limit_of_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_weights(tmp_path / "folder", from_arrays({key: np.ones(1) for key in "abcd"}), shard_bytes=16)
    (tmp_path / "folder" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {key: f"model-0000{n}-of-00002.safetensors" for key, n in (("a", 1), ("c", 2))}})
    )
    monkeypatch.setattr("w2jax.convert.lazy_tensor.MAX_TENSORS", 3)
    assert "must have at most 3 tensors, got 4" in told(tmp_path / "folder")


def test_a_pickle_of_half_a_million_calls_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "a.pt")
    calls = b"\x80\x02ccollections\nOrderedDict\nq\xf0)q\xf1" + b"h\xf0h\xf1R" * 500_000
    with zipfile.ZipFile(tmp_path / "a.pt") as whole, zipfile.ZipFile(tmp_path / "b.pt", "w") as longer:
        for name in whole.namelist():
            content = whole.read(name)
            longer.writestr(name, calls + content[2:] if name.endswith(".pkl") else content)
    assert "its pickle must have at most 500000 calls, got 50000" in refused(tmp_path / "b.pt")


def test_a_member_name_that_leaves_the_archive_writes_nothing(tmp_path: Path) -> None:
    """Writing such a name is rejected too."""
    (tmp_path / "in").mkdir()
    for key in ("../out", "/tmp/out", "a/../../out", "..\\out"):
        np.savez(tmp_path / "in" / "a.npz", **{key: np.ones(3)})
        assert list(read_weights(tmp_path / "in" / "a.npz").tensors) == [key]
        with pytest.raises(ValueError, match="must not be a path that is unpacked outside of the folder"):
            write_weights(tmp_path / "in" / "b.npz", from_arrays({key: np.ones(3)}))
    assert names(tmp_path) == ["in"] and names(tmp_path / "in") == ["a.npz"]


def test_a_link_is_replaced_and_its_target_is_unchanged(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for name in ("a.safetensors", "a.npz", "a.pt"):
        (tmp_path / name).symlink_to(tmp_path / "mine")
        write_weights(tmp_path / name, from_arrays(TIMM))
        assert not (tmp_path / name).is_symlink()
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("", ".index.json"):
        (folder / f"model.safetensors{name}").symlink_to(tmp_path / "mine")
    for name in ("config.json", "model-00001-of-00002.safetensors"):
        (folder / name).symlink_to(tmp_path / "mine")
    write_weights(folder, from_arrays(TIMM), configs={"config.json": {"a": 1}})
    assert names(folder) == ["config.json", "model.safetensors"]
    assert (tmp_path / "mine").read_text() == "mine"


def test_reading_a_pipe_does_not_wait(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.npz", "a.pt"):
        os.mkfifo(tmp_path / name)
        assert "is not a file" in told(tmp_path / name)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "a\u202eb", "\ud800", "x" * 501])
def test_names_that_do_not_fit_in_one_line_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(container({name: entry([1], [0, 4])}, bytes(4)))
    message = told(path)
    assert "printable characters" in message and message.isprintable()


@pytest.mark.parametrize(
    "header",
    [
        {"x" * 10**6: 3},
        {"a": entry([1] * 10**5, [0, 4])},
        {"a": entry([1], [0, 4], "F" * 10**6)},
        {"a": entry([10**4000], [0, 4])},
        {"__metadata__": {"w2jax": "[" * 10**6}},
        {"__metadata__": {"w2jax": json.dumps({"class": "x" * 10**6})}},
        {"__metadata__": {"w2jax": json.dumps({"class": "ViT", "x" * 10**6 + "\n": 1})}},
    ],
)
def test_an_error_is_one_short_line_for_any_content(tmp_path: Path, header: Any) -> None:
    (tmp_path / "a.safetensors").write_bytes(container(header))
    assert told(tmp_path / "a.safetensors").isprintable()


@pytest.mark.parametrize(
    "name", ["a" * 300 + ".safetensors", "a\n.safetensors", "\0.safetensors", "\ud800.safetensors", "a/b.safetensors"]
)
def test_an_index_of_invalid_names_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert "weight_map must name .safetensors files in the same folder" in told(tmp_path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, bytes]:
    folder = tmp_path_factory.mktemp("small")
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(4)}
    for name in ("a.safetensors", "a.npz", "a.pt"):
        write_weights(folder / name, from_arrays(tensors), {"k": "v"} if name != "a.pt" else None)
    np.savez_compressed(folder / "packed.npz", **tensors)
    torch.save(
        {name: torch.from_numpy(x) for name, x in tensors.items()},
        folder / "old.pt",
        _use_new_zipfile_serialization=False,
    )
    return {path: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
@FUZZ
@given(st.data())
def test_files_with_changed_bytes_are_read_or_refused(small: dict[Path, bytes], data: st.DataObject) -> None:
    for path, content in small.items():
        changed = bytearray(content)
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.integers(0, len(changed)))
            length = data.draw(st.sampled_from((0, 1, 4, 100)))
            changed[place : place + length] = data.draw(st.binary(max_size=8))
        path.write_bytes(changed)
        try:
            for tensor in read_weights(path).tensors.values():
                array = tensor.read()
                assert (array.shape, array.dtype) == (tensor.shape, tensor.dtype)
                assert array.nbytes <= 2**20
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)


# --- tensors that claim impossible models ---


@pytest.mark.parametrize(
    "key",
    [
        "blocks.999999999.norm1.weight",
        f"blocks.{LONG}.norm1.weight",
        "blocks.-1.norm1.weight",
        "blocks.٣.norm1.weight",
        "blocks.0_1.norm1.weight",
        "blocks." * 60,
        "Transformer/encoderblock_999999999/LayerNorm_0/scale",
    ],
)
def test_a_huge_layer_number_does_not_allocate_as_many_layers(key: str) -> None:
    tensors = TIMM | {key: np.ones(8, np.float32)}
    assert all(_depth(form, tensors) <= 4 for form in FORMATS)
    recognize(from_arrays(tensors))
    with pytest.raises(ValueError, match=r"unexpected  [bT]"):
        from_torch(MODULE, tensors)


@pytest.mark.parametrize("shape", [(), (0, 8), (2**40, 0), (10**6,)])
def test_a_huge_stack_of_layers_is_not_split(tmp_path: Path, shape: tuple[int, ...]) -> None:
    big = np.lib.stride_tricks.as_strided(np.ones(1, np.float32), shape, [0] * len(shape)) if shape else np.ones(())
    tensors = {key: value for key, value in GOOGLE.items() if "encoderblock" not in key}
    tensors["Transformer/encoderblock/LayerNorm_0/scale"] = big
    write_weights(tmp_path / "a.safetensors", from_arrays(tensors))
    assert "must have 1 to 1000 layers along its first axis" in told(tmp_path / "a.safetensors")


def test_thousands_of_unknown_names_are_refused_and_a_few_are_shown() -> None:
    strange = {f"block.{i}.norm.wieght": np.ones(1, np.float32) for i in range(20_000)}
    with pytest.raises(ValueError, match="must be those of a ViT in one of the formats ") as caught:
        recognize(from_arrays(strange))
    assert len(str(caught.value)) < 1000
    with pytest.raises(ValueError, match=r"\n  and \d+ more$") as caught:
        from_torch(MODULE, TIMM | strange)
    assert str(caught.value).count("\n") == 201


@pytest.mark.slow
@SLOW
@given(st.data())
def test_any_keys_and_shapes_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    tensors = dict(data.draw(st.sampled_from((TIMM, GOOGLE))))
    keys = st.sampled_from(sorted(tensors))
    number = st.sampled_from(("7", "-1", "٣", "00", "1e3", "99999999999", LONG, "", "{i}", "\n"))
    for _ in range(data.draw(st.integers(1, 4))):
        key = data.draw(keys)
        change = data.draw(st.integers(0, 4))
        value = tensors.get(key, np.ones(3, np.float32))
        if change < 2:
            tensors.pop(key, None)
        if change == 1:
            tensors[data.draw(st.one_of(keys, st.text(max_size=9)))] = value
        if change == 2:
            old, new = data.draw(st.sampled_from("01")), data.draw(number)
            tensors[key.replace(old, new)] = value
        if change > 2:
            shape = data.draw(st.lists(st.integers(0, 9), max_size=5))
            dtype = data.draw(st.sampled_from(("float32", "float16", "int8", "bool", "complex64")))
            tensors[key] = np.ones(shape, dtype)
    for work in (
        lambda: from_torch(MODULE, tensors),
        lambda: recognize(from_arrays(tensors)),
        lambda: write_weights(tmp_path / "a.safetensors", from_arrays(tensors)),
        lambda: load(tmp_path / "a.safetensors", num_heads=2),
    ):
        try:
            work()
        except ValueError as error:
            assert len(str(error)) < 20_000


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(10**40)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


@pytest.mark.parametrize(
    "config",
    [
        *({"model_type": "vit", "layer_norm_eps": value} for value in (float("nan"), float("inf"), 10**400, True, -1)),
        *({"model_type": "vit", "num_attention_heads": value} for value in (10**40, True, 2.0, "2", [2])),
        *({"model_type": value} for value in ([], {}, None, "bert\n")),
        *({"model_type": "vit", "hidden_act": value} for value in ([], {}, None)),
        *({"model_args": value} for value in ([1], "num_heads", 3, {"num_heads": []}, {"global_pool": [1]})),
        *({"image_size": value} for value in ([1, 2, 3], "32", -8, {"a": 1}, True)),
    ],
)
def test_a_config_of_wrong_types_is_named(tmp_path: Path, config: dict[str, Any]) -> None:
    write_weights(tmp_path / "model", from_arrays(TIMM), configs={"config.json": config})
    message = told(tmp_path / "model", **({"num_heads": 2} if "model_args" not in config else {}))
    assert "in config.json must be " in message or "image_size must be " in message


@pytest.mark.slow
@SLOW
@given(st.data())
def test_a_config_of_any_types_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    known = ("num_attention_heads", "layer_norm_eps", "hidden_act", "pooler_act", "image_size", "global_pool")
    config = data.draw(st.dictionaries(st.sampled_from(known), JSON))
    config |= data.draw(st.dictionaries(st.just("model_args"), JSON))
    if data.draw(st.booleans()):
        inner = ("num_heads", "global_pool", "img_size")
        config["model_args"] = data.draw(st.dictionaries(st.sampled_from(inner), JSON))
    if data.draw(st.booleans()):
        config["model_type"] = data.draw(st.one_of(st.just("vit"), JSON))
    write_weights(tmp_path / "model", from_arrays(TIMM), configs={"config.json": config})
    try:
        module, _ = load(tmp_path / "model")
    except ValueError as error:
        assert "\n" not in str(error) and str(tmp_path) in str(error)
    else:
        assert 0 < module.norm_eps < 1e30 and 8 % module.num_heads == 0


# --- descriptions of a module in our own files ---


def described(path: Path, tree: Any) -> Path:
    """Writes the tensors of a small ViT to a file that describes another module."""
    write_weights(path, from_arrays(TIMM), {"w2jax": tree if isinstance(tree, str) else json.dumps(tree)})
    return path


@pytest.mark.parametrize(
    "fields",
    [
        *({name: 2**30} for name in ("num_classes", "patch_size", "embed_dim", "mlp_dim", "num_registers", "depth")),
        *({"depth": value} for value in (10**30, -1, 1.5, True, None, "2", [2], {"class": "ViT"}, float("nan"))),
        *({"patch_size": value} for value in (0, -4, 10**6)),
        *({"num_heads": value} for value in (0, 3, 10**9)),
        *({"dropout": value} for value in (float("inf"), 10**400, "0", [])),
        {"dtype": "object"},
        {"dtype": "float32\n"},
        {"activation": "__class__"},
        {"pool": ["cls"]},
        {"embed_dim": 2**30, "positions": "sincos2d"},
        {"class": "LSTM"},
        {"class": []},
        {"parent": None},
        {"__class__": "ViT"},
    ],
)
def test_an_impossible_description_takes_no_memory(tmp_path: Path, fields: dict[str, Any]) -> None:
    path = described(tmp_path / "a.safetensors", module_to_json(MODULE) | fields)

    def refuse() -> None:
        with pytest.raises(ValueError) as caught:
            load(path)
        assert str(caught.value).startswith(str(path)) and len(str(caught.value)) < 20_000

    assert peak(refuse) < FEW


@pytest.mark.parametrize(
    "tree",
    [
        {"class": "AAEEncoder", "latent_size": 3, "hidden_sizes": [1] * 10_000},
        {"class": "AAEDecoder", "image_shape": [2**30] * 3},
        {"class": "Seq2Seq", "vocab_size": 9, "embed_dim": 2**30, "num_heads": 1, "mlp_dim": 1},
        {"class": "Seq2Seq", "vocab_size": 9, "embed_dim": 8, "num_heads": 1, "mlp_dim": 1, "max_length": 2**30},
        {"class": "LSTM", "hidden_size": 2**30, "num_layers": 10_000},
        {"class": "MultiHeadAttention", "num_heads": 2**30},
        {"class": "AAE", "encoder": {"class": "AAEDiscriminator"}},
        {"class": "AAE", "encoder": "AAEEncoder"},
        {"class": "HeadProjection"},
        {"class": "Recurrent", "hidden_size": 2**30},
        {
            "class": "TransformerEncoder",
            "block": {"class": "EncoderBlock", "num_heads": 2, "mlp_dim": 2**30},
            "depth": 1,
        },
        "[" * 10_000,
        '{"class":"AAE","encoder":' * 400 + "3" + "}" * 400,
        "\ud800",
        "{" + '"class":"ViT","class":"ViT"' + "}",
    ],
)
def test_a_description_of_another_module_takes_no_memory(tmp_path: Path, tree: Any) -> None:
    path = tmp_path / "a.safetensors"
    text = tree if isinstance(tree, str) else json.dumps(tree)
    header = {name: entry([1], [4 * i, 4 * i + 4]) for i, name in enumerate(TIMM)}
    path.write_bytes(container({"__metadata__": {"w2jax": text}} | header, bytes(4 * len(TIMM))))

    def refuse() -> None:
        with pytest.raises(ValueError) as caught:
            load(path)
        assert str(caught.value).startswith(str(path)) and len(str(caught.value)) < 20_000

    assert peak(refuse) < FEW


# --- the commands ---


@pytest.mark.parametrize("name", ["evil.pt", "bomb.npz", "header.safetensors", "folder", "described.safetensors"])
def test_the_commands_end_with_one_line_and_status_2(tmp_path: Path, name: str, capsys: Any) -> None:
    from configs.vit import PRESETS
    from train.config.cli import parse
    from train.engine import init_from
    from train.process.errors import UserError

    torch.save({"w": Call(Path.touch, tmp_path / "evil")}, tmp_path / "evil.pt")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("a.npy", npy(f"({2**60},)", bytes(10), "|u1"))
    (tmp_path / "header.safetensors").write_bytes(container(b"[" * 10**6))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../a.safetensors"}}')
    described(tmp_path / "described.safetensors", module_to_json(MODULE) | {"depth": 10**6})
    assert main([str(tmp_path / name), str(tmp_path / "out.npz")]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and output.err.count("\n") == 1 and not output.out
    with pytest.raises(UserError) as caught:
        parse("vit", PRESETS, ["tiny", "--init-from", str(tmp_path / name)], init_from.resolve)
    assert "\n" not in str(caught.value)
    assert "evil" not in names(tmp_path) and "out.npz" not in names(tmp_path)
