"""Modules as JSON: every class of the package is read back equal, and nothing else is built or imported."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import w2jax
from w2jax.aae import AAEDecoder
from w2jax.blocks import DecoderBlock, EncoderBlock
from w2jax.serialize import module_class, module_classes, module_from_json, module_to_json, with_fields
from w2jax.vit import ViT

NEEDED = dict.fromkeys(("num_classes", "patch_size", "embed_dim", "depth", "num_heads", "mlp_dim"), 4)
NEEDED |= dict.fromkeys(("hidden_size", "latent_size", "vocab_size"), 3)
NAMES = sorted(name for name, cls in module_classes().items() if hasattr(cls, "example_inputs"))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(10**40)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


@pytest.mark.parametrize("name", NAMES)
def test_a_module_is_read_back_equal(name: str) -> None:
    cls = module_class(name)
    blocks = {"TransformerEncoder": EncoderBlock(2, 4), "TransformerDecoder": DecoderBlock(2, 4)}
    needed = NEEDED | ({"block": blocks[name]} if name in blocks else {})
    module = cls(**{field: value for field, value in needed.items() if field in cls.__dataclass_fields__})
    assert module_from_json(json.loads(json.dumps(module_to_json(module)))) == module


def test_no_two_module_classes_of_the_package_share_a_name() -> None:
    files = [path for path in Path(w2jax.__path__[0]).glob("*.py") if "nn.Module" in path.read_text()]
    classes = [line for path in files for line in path.read_text().splitlines() if line.startswith("class ")]
    names = [line.split()[1].split("(")[0].rstrip(":") for line in classes]
    assert len(names) == len(set(names))
    assert set(names) >= module_classes().keys() and len(NAMES) >= 13


def test_a_new_file_of_the_package_is_found_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brand_new.py").write_text("from flax import linen as nn\nclass Brand(nn.Module):\n    size: int = 3\n")
    monkeypatch.setattr(w2jax, "__path__", [*w2jax.__path__, str(tmp_path)])
    module_classes.cache_clear()
    try:
        assert module_from_json({"class": "Brand", "size": 5}) == module_class("Brand")(5)
    finally:
        module_classes.cache_clear()
        sys.modules.pop("w2jax.brand_new", None)


@pytest.mark.parametrize("name", ["os", "w2jax.vit", "vit.ViT", "nn.Dense", "Dense", "", None, 3, [], {}])
def test_a_class_that_is_not_one_of_the_package_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="the class of a module must be a Linen module of w2jax, got "):
        module_from_json({"class": name})


def test_an_unknown_class_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="got 'LSTMClasifier'; did you mean 'LSTMClassifier'"):
        module_class("LSTMClasifier")
    with pytest.raises(ValueError, match=r"got 'x+'$"):
        module_class("x" * 10**6)


def test_earlier_names_of_an_aaes_parts_are_read() -> None:
    """These names are in files from before the parts were renamed."""
    old = {
        "class": "AAE",
        "encoder": {"class": "Encoder", "latent_size": 3},
        "decoder": {"class": "Decoder", "image_shape": [4, 4, 1]},
        "discriminator": {"class": "Discriminator"},
    }
    module: Any = module_from_json(old)
    assert (module.encoder.latent_size, module.decoder) == (3, AAEDecoder((4, 4, 1)))
    assert module_to_json(module)["encoder"]["class"] == "AAEEncoder"
    with pytest.raises(ValueError, match=r"AAE.encoder must be AAEEncoder, got "):
        module_from_json({"class": "AAE", "encoder": {"class": "Discriminator"}})


def test_only_fields_of_the_module_can_be_replaced() -> None:
    module = ViT(5, 2, 8, 1, 2, 12)
    assert with_fields(module, {"dropout": 0.5}) == module.clone(dropout=0.5)
    with pytest.raises(ValueError, match='ViT has no field "n_heads"; did you mean "num_heads"'):
        with_fields(module, {"n_heads": 3})
    with pytest.raises(ValueError, match='ViT has no field "parent"'):
        with_fields(module, {"parent": None})


@settings(deadline=None)
@given(st.sampled_from(sorted(module_classes())), st.data())
def test_a_description_of_any_types_is_read_or_refused(name: str, data: st.DataObject) -> None:
    fields = [field for field in module_class(name).__dataclass_fields__ if field not in ("parent", "name")]
    tree = data.draw(st.dictionaries(st.sampled_from([*fields, "parent", "a"]), JSON, max_size=4)) | {"class": name}
    try:
        module = module_from_json(tree)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert type(module) is module_class(name)
