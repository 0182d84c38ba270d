"""Programs begin with huge pages where kernel and glibc know them; importing the package changes nothing."""

import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train.process import malloc as allocator
from train.process.malloc import huge_pages


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's file, which says that it gives huge pages to those who ask."""
    monkeypatch.setattr(allocator, "_KERNEL", tmp_path / "enabled")
    monkeypatch.setattr(os, "confstr", lambda _: "glibc 2.36")
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    return tmp_path / "enabled"


def test_huge_pages_are_asked_for_beside_what_was_told(kernel: Path) -> None:
    assert huge_pages({}) == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    told = huge_pages({"GLIBC_TUNABLES": "glibc.malloc.check=3"})["GLIBC_TUNABLES"]
    assert told.split(":") == ["glibc.malloc.check=3", "glibc.malloc.hugetlb=1"]


@pytest.mark.parametrize("told", ["glibc.malloc.hugetlb=0", "glibc.malloc.check=3:glibc.malloc.hugetlb=2"])
def test_what_the_user_said_of_huge_pages_holds(kernel: Path, told: str) -> None:
    assert huge_pages({"GLIBC_TUNABLES": told}) == {}


@pytest.mark.parametrize("mode", ["[always] madvise never", "always madvise [never]", None])
def test_a_kernel_that_would_not_heed_it_is_not_asked(kernel: Path, mode: str | None) -> None:
    kernel.unlink() if mode is None else kernel.write_text(mode)
    assert huge_pages({}) == {}


@pytest.mark.parametrize("version", ["glibc 2.31", "glibc 2.34", "", None])
def test_a_libc_that_does_not_know_it_is_not_told(kernel: Path, monkeypatch, version: str | None) -> None:
    monkeypatch.setattr(os, "confstr", lambda _: version)
    assert huge_pages({}) == {}


def without_tunables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}


@pytest.mark.slow
@pytest.mark.skipif(not huge_pages({}), reason="this kernel gives huge pages to all or to none, or malloc is another's")
def test_a_training_holds_its_arrays_in_huge_pages(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "train.lstm", "tiny", "--run.dir", str(tmp_path / "run")]
    with subprocess.Popen(command, env=without_tunables(), stdout=subprocess.DEVNULL) as program:
        try:
            for _ in range(600):
                status = Path(f"/proc/{program.pid}/smaps_rollup").read_text()
                (found,) = re.findall(r"AnonHugePages: +(\d+) kB", status) or ("0",)
                if int(found) > 32 * 1024:
                    return
                time.sleep(0.1)
            pytest.fail(f"no huge pages in a minute:\n{status}")
        finally:
            program.kill()


COMPILE = """
import jax, jax.numpy as jnp
from pathlib import Path
from train.process.malloc import trim_after_compiling
from w2jax import ViT
if {trim}:
    trim_after_compiling()
vit, x = ViT(10, 7, 32, 3, 2, 64), jnp.zeros((8, 28, 28, 1))
variables = jax.eval_shape(vit.init, jax.random.key(0), x)
jax.jit(jax.grad(lambda variables: vit.apply(variables, x)[0].var())).lower(variables).compile()
(line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
print(int(line.split()[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif("glibc" not in platform.libc_ver()[0], reason="malloc is not glibc's")
def test_what_the_compiler_has_freed_is_given_back() -> None:
    usual = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # not the tests' quick compiler
    commands = [[sys.executable, "-c", COMPILE.format(trim=trim)] for trim in (False, True)]
    held, trimmed = (
        int(subprocess.run(command, env=usual, capture_output=True, text=True, check=True).stdout)
        for command in commands
    )
    assert trimmed < held - 20, f"{held} MiB held, {trimmed} MiB with trimming"


def test_importing_the_package_starts_nothing_over() -> None:
    told = "import os, train; print('GLIBC_TUNABLES' in os.environ)"
    command = [sys.executable, "-c", told]
    out = subprocess.run(command, env=without_tunables(), capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"


def test_a_program_that_is_started_over_has_its_arguments_and_its_status() -> None:
    command = [sys.executable, "-W", "error", "-m", "train.lstm", "no such preset", "--run.dir", "a b"]
    out = subprocess.run(command, env=without_tunables(), capture_output=True, text=True)
    assert out.returncode == 2 and "no such preset" in out.stderr
