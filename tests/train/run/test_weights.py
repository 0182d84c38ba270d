"""The weights of a run folder: read as they were evaluated, changed on request, and exported to other libraries."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors.torch
import torch
from models import random_variables
from torch_timm import TimmViT
from weights import assert_same, refusal

from train.engine.checkpoint import Checkpoints
from train.run.manifest import write_manifest
from train.run.weights import describe_run, load_run
from train.task import State
from w2jax.aae import AAE, AAEDecoder, AAEDiscriminator, AAEEncoder
from w2jax.convert import load, save, to_torch
from w2jax.serialize import module_to_json
from w2jax.vit import ViT

IMAGES = np.random.default_rng(3).random((3, 4, 6, 2)).astype(np.float32)
PLAIN: dict[str, Any] = {}
RICH: dict[str, Any] = {
    "pool": "gap",
    "norm_after_pool": True,
    "num_registers": 3,
    "register_positions": True,
    "qkv_bias": False,
    "qk_norm": True,
    "layer_scale": 0.1,
}


def write_run(folder: Path, module: Any, states: dict[int, State]) -> Path:
    """Writes a run as the loop does: its config, and a checkpoint of each step."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model": module_to_json(module), "run": {"seed": 0}}))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state, {"seconds": 1.0})
    return folder


def state_of(variables: dict[str, Any], ema: Any = None) -> State:
    opt_state = optax.adam(1e-3).init(variables["params"])
    return State(jnp.asarray(7), variables["params"], opt_state, ema, variables.get("batch_stats"))


@pytest.mark.parametrize("options", [PLAIN, RICH], ids=("class token", "mean"))
def test_a_trained_vit_gives_the_same_logits_in_timm(tmp_path: Path, options: dict[str, Any]) -> None:
    module = ViT(5, 2, 8, 2, 2, 12, dropout=0.25, **options)
    older, params, average = (random_variables(module, jnp.asarray(IMAGES), seed=i)["params"] for i in range(3))
    states = {9: state_of({"params": older}, older), 10: state_of({"params": params}, average)}
    loaded = load_run(write_run(tmp_path / "run", module, states))
    assert loaded.module == module and loaded.notes == ["the moving average (EMA) of the parameters of step 10"]
    assert_same(loaded.variables, {"params": average})
    wanted, _ = jax.jit(module.apply)(loaded.variables, jnp.asarray(IMAGES))

    save(tmp_path / "timm.safetensors", loaded.module, loaded.variables, "timm")
    known = {"registers": 3, "qkv_bias": False, "qk_norm": True, "layer_scale": True, "pool": "avg"} if options else {}
    peer = TimmViT(5, 2, 8, 2, 2, 12, 6, 2, **known)
    peer.load_state_dict(safetensors.torch.load_file(tmp_path / "timm.safetensors"), strict=True)
    found = peer.eval()(torch.from_numpy(IMAGES).permute(0, 3, 1, 2)).detach()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_a_run_without_an_average_gives_its_parameters_and_statistics(tmp_path: Path) -> None:
    module = AAE(AAEEncoder(3, (7, 5)), AAEDecoder((2, 3, 1), (6, 4)), AAEDiscriminator((6, 4)))
    variables = random_variables(module, jnp.zeros((1, 2, 3, 1)))
    assert variables.keys() == {"params", "batch_stats"}
    loaded = load_run(write_run(tmp_path / "run", module, {3: state_of(variables)}))
    assert loaded.module == module and loaded.notes == ["the parameters of step 3"]
    assert_same(loaded.variables, variables)
    assert_same(to_torch(module, loaded.variables), to_torch(module, variables))


def test_a_runs_classifier_can_be_dropped_or_initialized(tmp_path: Path) -> None:
    module = ViT(5, 2, 8, 1, 2, 12)
    params = random_variables(module, jnp.asarray(IMAGES))["params"]
    run = write_run(tmp_path / "run", module, {1: state_of({"params": params})})
    body = {name: value for name, value in params.items() if name != "head"}
    found, variables, _ = load_run(run, "drop")
    assert found == module.clone(num_classes=0)
    assert_same(variables, {"params": body})
    found, variables, _ = load_run(run, "reinit", num_classes=3, dropout=0.5)
    assert found == module.clone(num_classes=3, dropout=0.5)
    assert_same(variables, {"params": body | {"head": {"kernel": jnp.zeros((8, 3)), "bias": jnp.zeros(3)}}})


def test_a_broken_run_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("{}")
    assert "config.json must describe a model" in refusal(lambda: load_run(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model": module_to_json(ViT(5, 2, 8, 1, 2, 12))}))
    assert "has no checkpoint yet" in refusal(lambda: load_run(tmp_path))
    (tmp_path / "checkpoints" / "4").mkdir()
    message = refusal(lambda: load_run(tmp_path))
    assert f"every checkpoint in {tmp_path} is damaged: step 4: progress/metadata cannot be read" in message


def test_a_small_checkpoint_that_claims_large_arrays_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros need few bytes in a file."""
    module = ViT(5, 2, 8, 1, 2, 12)
    params = random_variables(module, jnp.asarray(IMAGES))["params"]
    params["head"] = {"kernel": jnp.zeros((8, 2**20)), "bias": jnp.zeros(2**20)}
    run = write_run(tmp_path / "run", module.clone(num_classes=2**20), {1: state_of({"params": params})})
    load_run(run)
    monkeypatch.setattr("w2jax.files._SMALL", 2**20)
    assert re.search(r"state must unpack to at most \d+ bytes, got 37\d{6} ", refusal(lambda: load_run(run)))


def test_shapes_that_differ_from_the_config_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ViT(5, 2, 8, 1, 2, 12)
    params = random_variables(module, jnp.asarray(IMAGES))["params"]
    run = write_run(tmp_path / "run", module, {1: state_of({"params": params})})
    (run / "config.json").write_text(json.dumps({"model": module_to_json(module.clone(depth=2))}))
    monkeypatch.setattr(ocp.Checkpointer, "restore", lambda *_, **__: pytest.fail("an array was read"))
    assert "do not match the parameters of the ViT in config.json" in refusal(lambda: load_run(run))


def test_a_damaged_checkpoint_is_skipped_and_named(tmp_path: Path) -> None:
    module = ViT(5, 2, 8, 1, 2, 12)
    older, newer = (random_variables(module, jnp.asarray(IMAGES), seed=i)["params"] for i in range(2))
    states = {2: state_of({"params": older}), 6: state_of({"params": newer})}
    run = write_run(tmp_path / "run", module, states)
    (run / "checkpoints" / "6" / "state" / "_METADATA").write_text("{}")
    loaded = load_run(run)
    assert_same(loaded.variables, {"params": older})
    assert loaded.notes == [
        "the parameters of step 2",
        "skipped damaged checkpoint, step 6: state/_METADATA must have "
        f"{json.loads((run / 'checkpoints' / '6' / 'manifest.json').read_text())['files']['state/_METADATA']['bytes']}"
        " bytes, got 2",
    ]
    assert (run / "checkpoints" / "6").exists()


def test_a_run_is_described_without_its_checkpoints_and_with_other_fields(tmp_path: Path) -> None:
    module = ViT(5, 2, 8, 1, 2, 12)
    params = random_variables(module, jnp.asarray(IMAGES))["params"]
    run = write_run(tmp_path / "run", module, {1: state_of({"params": params})})
    found = load_run(run, scan_layers=True)
    assert found.module == module.clone(scan_layers=True)
    assert found.variables["params"]["encoder"]["blocks"]["norm1"]["scale"].shape == (1, 8)
    (run / "checkpoints" / "1" / "manifest.json").unlink()
    assert describe_run(run) == module and describe_run(run, dropout=0.5) == module.clone(dropout=0.5)
    assert 'did you mean "depth"?' in refusal(lambda: describe_run(run, deph=3))


def test_the_converter_names_the_command_that_exports_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ViT(5, 2, 8, 1, 2, 12), {})
    message = refusal(lambda: load(run))
    assert f"{run} must contain model.safetensors.index.json, " in message
    assert "python -m train.export DIR --format F --out FILE" in message


@pytest.mark.parametrize("changed", [b'"key": "5"', b'"key": null', b'"key": []', b"{"])
def test_a_checkpoint_with_wrong_content_and_right_checksums_is_refused(tmp_path: Path, changed: bytes) -> None:
    module = ViT(5, 2, 8, 1, 2, 12)
    state = state_of(random_variables(module, jnp.asarray(IMAGES)))
    checkpoint = write_run(tmp_path / "run", module, {3: state}) / "checkpoints" / "3"
    metadata = checkpoint / "state" / "_METADATA"
    metadata.write_bytes(metadata.read_bytes().replace(b'"key": "0"', changed))
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint, finished=True)
    with pytest.raises(ValueError, match=r"^cannot read the checkpoint .*/checkpoints/3/state: .") as caught:
        load_run(tmp_path / "run")
    assert "\n" not in str(caught.value)
