"""The tokens after chosen blocks of a ViT, against timm's."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights import FIXTURES, peer

from w2jax import ViT

EXPECTED = np.load(Path(__file__).parents[1] / "fixtures" / "intermediates.npz")


def model(name: str, **fields: Any) -> tuple[ViT, Any, Any]:
    """Returns a ViT of timm with its variables and an image."""
    loaded = peer(name)
    images = jnp.asarray(np.load(FIXTURES / name / "io.npz")["images"][:1])
    return loaded.module.clone(**fields), loaded.variables, images  # type: ignore[return-value]


@pytest.mark.parametrize("name", EXPECTED)
def test_the_tokens_after_each_block_are_those_of_timm(name: str) -> None:
    fixture, _, norm = name.rpartition("_")
    vit, variables, images = model(fixture)
    tokens = vit.features(variables, images, range(vit.depth), norm=norm == "True")
    expected = EXPECTED[name]
    assert tokens[0].shape[2] == vit.embed_dim and len(tokens) == vit.depth
    kept = jnp.stack(tokens)[..., : expected.shape[-1]]
    np.testing.assert_allclose(kept, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_blocks_are_chosen_in_any_order_and_from_the_end() -> None:
    vit, variables, images = model("timm_hub_reg4_gap")
    first, last = vit.features(variables, images, [0, 1])
    for blocks, expected in (([-1, 0], (last, first)), ((-2,), (first,)), ([1, 1], (last, last)), ([], ())):
        for one, other in zip(vit.features(variables, images, blocks), expected, strict=True):
            np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(vit.features(variables, images)[0], last)
    assert not np.array_equal(first, last)
    for wrong in (2, -3):
        with pytest.raises(ValueError, match=f"blocks must be from -2 to 1, got {wrong}"):
            vit.features(variables, images, [0, wrong])


@pytest.mark.parametrize("fields", [{"scan_layers": True}, {"remat": True}, {"scan_layers": True, "remat": True}])
def test_scanned_and_recomputed_layers_give_the_same_tokens_also_in_jit(fields: dict[str, bool]) -> None:
    vit, variables, images = model("timm_clip", depth=2)
    variables = vit.init(jax.random.key(1), images)
    expected = vit.features(variables, images, [0, 1])
    vit = vit.clone(**fields)
    if vit.scan_layers:
        encoder = variables["params"]["encoder"]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), encoder["block_0"], encoder["block_1"])
        variables = {"params": {**variables["params"], "encoder": {"blocks": stacked}}}
    tokens = jax.jit(lambda variables, images: vit.features(variables, images, [1, 0]))(variables, images)
    for one, other in zip(tokens, reversed(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
