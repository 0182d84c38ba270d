"""`import w2jax` loads a model's module only when the model is first used."""

import subprocess
import sys
from pathlib import Path

import pytest

import w2jax


def test_every_public_name_exists_and_other_names_raise() -> None:
    for name in w2jax.__all__:
        assert getattr(w2jax, name).__name__ in (name, f"w2jax.{name}")
    assert set(w2jax.__all__) <= set(dir(w2jax))
    with pytest.raises(AttributeError, match="module 'w2jax' has no attribute 'BERT'"):
        w2jax.BERT  # noqa: B018


def test_the_package_and_its_file_helpers_need_no_jax() -> None:
    program = "import sys, w2jax, w2jax.text, w2jax.files; sys.exit(bool({'jax', 'flax', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_a_module_of_the_package_is_available_without_importing_it() -> None:
    program = "import w2jax; w2jax.priors.sample_prior, w2jax.convert.load, w2jax.vit.ViT"
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=True)
