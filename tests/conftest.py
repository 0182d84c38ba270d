"""Settings of all tests: eight simulated devices, fast compilation, and run-time checks of jaxtyping signatures."""

import os
from importlib.metadata import version

# Compile without optimization. Where this XLA still has the older emitters, use them: they take a third of the time
# of the newer ones. Programs that tests start inherit these flags.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    + " --xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10.")
)
os.environ["OMP_NUM_THREADS"] = "1"  # torch's waiting threads use CPU, which slows down tests that run in parallel

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
install_import_hook(["w2jax", "train.data.augment"], "beartype.beartype")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    """Gives the tests, and the programs that they start, an empty cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
