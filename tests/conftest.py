"""Eight simulated devices, quick compilation, and every jaxtyping signature of the library checked as it is called."""

import os
from importlib.metadata import version

# Unoptimized, and by the older emitters, where this XLA still has them: they take a third of the newer ones' time.
# Programs that tests start inherit it.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    + " --xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10.")
)
os.environ["OMP_NUM_THREADS"] = "1"  # torch's threads spin, which makes tiny steps beside other tests slow

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
install_import_hook(["w2jax", "train.data.augment"], "beartype.beartype")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    """A user's cache of their own, for the tests and the programs that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
