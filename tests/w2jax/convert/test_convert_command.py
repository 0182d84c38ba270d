"""The command python -m w2jax.convert: its output, the files that it writes, and its exit status."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from w2jax.convert.__main__ import main
from w2jax.convert.files import read_weights

FIXTURES = Path(__file__).parents[2] / "fixtures" / "vit"


def said(capsys) -> dict[str, str]:
    """Returns the rows of the printed table as text."""
    return {line[:12].strip(): line[12:] for line in capsys.readouterr().out.splitlines()}


def test_a_file_becomes_another_librarys_with_the_same_tensors(tmp_path, capsys):
    middle, back = tmp_path / "middle.npz", tmp_path / "back"
    assert main([str(FIXTURES / "hf_vit"), str(middle), "--format", "google", "--check"]) == 0
    table = said(capsys)
    assert table["read"].endswith("hf_vit: huggingface, 40 tensors, float32")
    assert table["parameters"] == "45,383"
    assert "activation is gelu in this model and gelu_tanh by default in google" in table["differs"]
    assert table["compared"].endswith("none differ")
    assert main([str(middle), str(back), "--format", "huggingface"]) == 0
    wanted, found = (read_weights(folder).tensors for folder in (FIXTURES / "hf_vit", back))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(found[name].read(), tensor.read())
    config, theirs = (json.loads((folder / "config.json").read_text()) for folder in (back, FIXTURES / "hf_vit"))
    same = ("architectures", "hidden_act", "layer_norm_eps", "num_attention_heads", "intermediate_size", "id2label")
    assert [config[name] for name in same] == [theirs[name] for name in same]


def test_assumptions_are_printed_and_timms_arguments_are_shown(tmp_path, capsys):
    source = str(FIXTURES / "timm_avg_fcnorm")
    assert main([source, str(tmp_path / "a.safetensors"), "--num-heads", "3", "--format", "timm"]) == 0
    table = said(capsys)
    assert table["assumed"] == "activation gelu, norm_eps 1e-06, pool gap"
    for argument in ("img_size=(32, 32)", "patch_size=8", "num_heads=3", "mlp_ratio=120 / 48", "global_pool='avg'"):
        assert argument in table["in timm"]


def test_an_epsilon_in_config_json_is_not_printed(tmp_path, capsys):
    source = [str(FIXTURES / "torchvision_vit"), "--num-heads", "3", "--format", "huggingface"]
    assert main([*source, str(tmp_path / "a.safetensors")]) == 0
    assert "norm_eps is 1e-06 in this model and 1e-12 by default in huggingface" in said(capsys)["differs"]
    assert main([*source, str(tmp_path / "folder")]) == 0
    assert "differs" not in said(capsys)


def test_a_quoted_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(FIXTURES / "google_npz", tmp_path / "source")
    assert main(["~/source", "~/new.safetensors"]) == 0 and (tmp_path / "new.safetensors").is_file()


@pytest.mark.slow
def test_a_path_that_the_output_cannot_show_is_escaped(tmp_path):
    source = shutil.copytree(FIXTURES / "google_npz", tmp_path / "modèle")
    command = [sys.executable, "-m", "w2jax.convert", str(source), str(tmp_path / "new.npz")]
    ended = subprocess.run(command, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "") and "mod\\xe8le: google" in ended.stdout
    assert (tmp_path / "new.npz").is_file()


def test_differing_files_are_reported_tensor_by_tensor(tmp_path, capsys):
    source, other = str(FIXTURES / "google_npz"), tmp_path / "other.pt"
    assert main([source, str(other), "--format", "timm"]) == 0
    state_dict = torch.load(other, weights_only=True)
    state_dict["blocks.1.attn.qkv.weight"][0, 0] += 0.5  # a weight of a query
    torch.save(state_dict, other)
    capsys.readouterr()
    assert main([source, str(other), "--check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "  encoder/block_1/attention/query/kernel: the values differ by at most 0.5" in lines
    assert lines[-1].endswith("1 differ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.safetensors", "a.npz"], "missing.safetensors does not exist"),
        ([str(FIXTURES / "timm_cls"), "a.npz"], "Pass num_heads (--num-heads)"),
        (
            [str(FIXTURES / "hf_vit"), "a.npz", "--format", "keras"],
            "must be one of timm, huggingface, deit, msn, ",
        ),
        ([str(FIXTURES / "hf_vit"), "a.txt", "--format", "timm"], "got the suffix .txt"),
    ],
)
def test_an_error_is_one_message_and_leaves_no_file(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert not list(tmp_path.iterdir())


def test_for_a_run_folder_the_error_names_the_export_command(tmp_path, capsys):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    assert main([str(tmp_path / "run"), str(tmp_path / "a.npz"), "--format", "timm"]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith(f"error: {tmp_path / 'run'} must contain model.safetensors.index.json, ")
        and error.count("\n") == 1
    )
    assert error.endswith("To export a run folder, run: python -m train.export DIR --format F --out FILE\n")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz", "a.pt", "model.safetensors.index.json", "config.json"])
def test_a_file_that_w2jax_did_not_write_is_kept(name, tmp_path, capsys):
    file = tmp_path / name
    target = file if name.startswith("a.") else tmp_path
    command = [str(FIXTURES / "google_npz"), str(target), "--format", "timm"]
    file.write_bytes(b"{}")
    assert main(command) == 2
    told = f"{file} exists, and nothing in it shows that w2jax wrote it. Choose another path, or replace it with "
    assert capsys.readouterr().err == f"error: {told}--overwrite\n"
    assert file.read_bytes() == b"{}" and len(list(tmp_path.iterdir())) == 1
    assert main([*command, "--overwrite"]) == 0
    assert not file.exists() or file.read_bytes() != b"{}"
    assert main(command) == (2 if name == "a.pt" else 0)  # torch's files cannot say who wrote them


def test_a_folder_that_w2jax_wrote_is_replaced_unless_another_program_changed_it(tmp_path, capsys):
    command = [str(FIXTURES / "hf_vit"), str(tmp_path / "out"), "--format", "huggingface"]
    assert main([*command, "--shard-bytes", "20000"]) == 0 and len(list((tmp_path / "out").glob("model-*"))) > 1
    assert main(command) == 0 and not list((tmp_path / "out").glob("model-*"))
    (tmp_path / "out" / "config.json").write_text('{"task": "vit", "run": {}}')  # the config.json of a run folder
    assert main(command) == 2
    capsys.readouterr()
    shard = tmp_path / "out" / "model-00001-of-00002.safetensors"
    shard.write_bytes((FIXTURES / "timm_cls" / "model.safetensors").read_bytes())
    assert main([str(FIXTURES / "hf_vit"), str(tmp_path / "out"), "--format", "torch"]) == 2
    assert f"{shard} exists, and nothing in it shows" in capsys.readouterr().err and shard.exists()


def test_weights_of_others_are_not_converted_in_place(tmp_path, capsys):
    path = tmp_path / "vit.safetensors"
    path.write_bytes(content := (FIXTURES / "hf_vit" / "model.safetensors").read_bytes())
    command = [str(path), str(path), "--num-heads", "3"]
    assert main(command) == 2 and "vit.safetensors exists" in capsys.readouterr().err and path.read_bytes() == content
    assert main([*command, "--overwrite"]) == 0 and "blocks.0.norm1.weight" in read_weights(path).tensors


@pytest.mark.slow
def test_a_conversion_whose_reader_is_gone_is_completed(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "w2jax.convert", FIXTURES / "google_npz", tmp_path / "a.safetensors"]
    try:
        process = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)
    assert (process.returncode, process.stderr) == (0, b"")
    assert read_weights(tmp_path / "a.safetensors").tensors
