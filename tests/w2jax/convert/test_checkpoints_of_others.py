"""Checkpoints with other objects beside the tensors, as timm and Lightning write them. Nothing in them is run."""

import argparse
import collections
import enum
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from weights import assert_same, peer, refusal, tensors_of

from w2jax.convert import load
from w2jax.convert.__main__ import main
from w2jax.convert.files import read_weights
from w2jax.convert.load_save import load_described


class Kind(enum.Enum):
    LARGE = 3


class Call:
    """An object whose unpickling calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class WithState:
    """An object whose unpickling sets attributes."""

    def __init__(self):
        self.path = Path("/x")


OTHERS = {
    "args": argparse.Namespace(model="vit", lr=1e-3, out=Path("/tmp"), betas=(0.9, 0.99)),
    "path": PurePosixPath("/data/pets"),
    "loss": np.float64(0.25),
    "history": np.arange(6.0).reshape(2, 3),
    "callbacks": collections.defaultdict(list, {"checkpoint": [1, 2]}),
    "counter": collections.Counter("aab"),
    "kind": Kind.LARGE,
    "object": WithState(),
    "hyper_parameters": collections.OrderedDict(lr=0.1),
    "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}],
    "epoch": 7,
}


def state(prefix=""):
    return {prefix + key: torch.from_numpy(value) for key, value in tensors_of("timm_cls").items()}


@pytest.mark.parametrize("name", ["last.ckpt", "model_best.pth.tar", "model.pt", "pytorch_model.bin"])
def test_tensors_beside_other_objects_are_read_bit_for_bit(tmp_path, name):
    torch.save({"state_dict": state("model."), **OTHERS}, tmp_path / name)
    module, variables = load(tmp_path / name, num_heads=3)
    assert module == peer("timm_cls").module
    assert_same(variables, peer("timm_cls").variables)
    command = [str(tmp_path / name), str(tmp_path / "a.safetensors"), "--num-heads", "3", "--format", "timm", "--check"]
    assert main(command) == 0


def test_timms_average_is_read_beside_its_arguments(tmp_path):
    average = {key: 2 * value for key, value in state().items()}
    torch.save({"state_dict": state(), "state_dict_ema": average, **OTHERS}, tmp_path / "a.pth.tar")
    loaded = load_described(tmp_path / "a.pth.tar", num_heads=3)
    np.testing.assert_array_equal(loaded.variables["params"]["cls"], 2 * peer("timm_cls").variables["params"]["cls"])


def test_nothing_in_a_file_is_run(tmp_path):
    """Functions, classes and builtins that a file names are replaced, so the calls have no effect."""
    target = tmp_path / "evil"
    calls = [
        Call(open, str(target), "w"),
        Call(eval, f"open({str(target)!r}, 'w')"),
        Call(exec, f"open({str(target)!r}, 'w')"),
        Call(torch.save, {}, str(target)),
    ]
    for call in calls:
        torch.save({"state_dict": state(), "args": call}, tmp_path / "a.ckpt")
        tensors = read_weights(tmp_path / "a.ckpt").tensors
        assert_same({key: tensor.read() for key, tensor in tensors.items()}, tensors_of("timm_cls"))
        assert not target.exists()


def test_an_object_in_the_place_of_a_tensor_is_an_error(tmp_path):
    torch.save({"state_dict": state() | {"norm.weight": WithState()}}, tmp_path / "a.ckpt")
    assert "'norm.weight' must be an array of NumPy, JAX or torch, got WithState" in refusal(
        lambda: load(tmp_path / "a.ckpt", num_heads=3)
    )
    torch.save(torch.nn.Linear(2, 3), tmp_path / "b.ckpt")
    message = refusal(lambda: read_weights(tmp_path / "b.ckpt"))
    assert "the file must contain a dict of tensors by name, got Linear" in message


def test_a_file_of_very_many_classes_is_refused(tmp_path):
    kinds = [type(f"Kind{i}", (), {"__module__": __name__}) for i in range(1001)]
    globals().update({kind.__name__: kind for kind in kinds})
    torch.save({"state_dict": state(), "args": [kind() for kind in kinds]}, tmp_path / "a.ckpt")
    assert "at most 1000 other classes, got 1001" in refusal(lambda: read_weights(tmp_path / "a.ckpt"))
