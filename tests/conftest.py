"""Settings of all tests: eight simulated devices, fast compilation, checked jaxtyping signatures; a browser."""

import os
import signal
import threading
from importlib.metadata import version
from pathlib import Path

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

from train.process.signals import SIGNALS

jax.config.update("jax_num_cpu_devices", 8)

# Only the modules with shapes in their signatures, because a checked function takes several times as long to call.
ROOT = Path(__file__).parents[1]
SHAPED = [path.relative_to(ROOT) for path in (ROOT / "w2jax").rglob("*.py") if "jaxtyping" in path.read_text()]
MODULES = [".".join(path.with_suffix("").parts) for path in SHAPED]
install_import_hook([*MODULES, "train.data.augment"], "beartype.beartype")


def pytest_addoption(parser):
    help = "run only the first N test functions of each file, each with its first parameters"
    parser.addoption("--first", type=int, metavar="N", help=help)


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config, items):
    if (most := config.getoption("--first")) is None:
        return
    functions: dict[Path, set[str]] = {}
    chosen, rest = [], []
    for item in items:
        known = functions.setdefault(item.path, set())
        name = item.nodeid.partition("[")[0]
        if name in known or len(known) == most:
            rest.append(item)
        else:
            known.add(name)
            chosen.append(item)
    config.hook.pytest_deselected(items=rest)
    items[:] = chosen


@pytest.fixture
def default_handlers():
    """Ensures that no signal is ignored, which tests and started programs would inherit from nohup or a shell's job."""
    outer = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    yield
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):  # It sends a signal again, which no later test may get.
            thread.join()
    for number, handler in outer.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    """Gives the tests, and the programs that they start, an empty cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, for tests that are skipped if no browser is installed."""
    from playwright.sync_api import sync_playwright

    from benchmarks.makers.report_picture import CHROMIUM

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()
