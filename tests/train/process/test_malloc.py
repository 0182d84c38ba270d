"""Programs start with huge pages if the kernel and glibc support them; importing the package changes nothing."""

import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train.process import malloc
from train.process.malloc import huge_pages, restart_with_huge_pages


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the kernel's file, with the mode that gives huge pages on request; glibc supports them."""
    monkeypatch.setattr(malloc, "_KERNEL", tmp_path / "enabled")
    monkeypatch.setattr(os, "confstr", lambda _: "glibc 2.36")
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    return tmp_path / "enabled"


def test_huge_pages_are_requested_together_with_other_tunables(kernel: Path) -> None:
    assert huge_pages({}) == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    tunables = huge_pages({"GLIBC_TUNABLES": "glibc.malloc.check=3"})["GLIBC_TUNABLES"]
    assert tunables.split(":") == ["glibc.malloc.check=3", "glibc.malloc.hugetlb=1"]


@pytest.mark.parametrize("tunables", ["glibc.malloc.hugetlb=0", "glibc.malloc.check=3:glibc.malloc.hugetlb=2"])
def test_the_users_own_setting_of_huge_pages_is_kept(kernel: Path, tunables: str) -> None:
    assert huge_pages({"GLIBC_TUNABLES": tunables}) == {}


def test_one_environment_variable_turns_huge_pages_off(kernel: Path) -> None:
    assert huge_pages({"W2JAX_HUGE_PAGES": "0"}) == {}
    assert huge_pages({"W2JAX_HUGE_PAGES": "1"}) != {}


@pytest.mark.parametrize("mode", ["[always] madvise never", "always madvise [never]", None])
def test_huge_pages_are_not_requested_where_the_kernel_gives_none_on_request(kernel: Path, mode: str | None) -> None:
    """It gives them to all memory, or to none."""
    kernel.unlink() if mode is None else kernel.write_text(mode)
    assert huge_pages({}) == {}


@pytest.mark.parametrize("version", ["glibc 2.31", "glibc 2.34", "", None])
def test_huge_pages_are_not_requested_without_libc_support(kernel: Path, monkeypatch, version: str | None) -> None:
    monkeypatch.setattr(os, "confstr", lambda _: version)
    assert huge_pages({}) == {}


def without_tunables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}


@pytest.mark.slow
@pytest.mark.skipif(not huge_pages({}), reason="no huge pages on request here, or malloc is not glibc's")
def test_a_training_run_has_its_arrays_in_huge_pages(tmp_path: Path) -> None:
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
def test_memory_that_the_compiler_has_freed_returns_to_the_kernel() -> None:
    usual = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # not the tests' fast compiler
    commands = [[sys.executable, "-c", COMPILE.format(trim=trim)] for trim in (False, True)]
    held, trimmed = (
        int(subprocess.run(command, env=usual, capture_output=True, text=True, check=True).stdout)
        for command in commands
    )
    assert trimmed < held - 20, f"{held} MiB held, {trimmed} MiB with trimming"


@pytest.mark.parametrize(
    ("original", "rest", "restarts"),
    [
        (["python", "-m", "train.vit"], [], True),
        (["python", "-W", "error", "-m", "train.vit", "tiny", "--run.dir", "a b"], ["tiny", "--run.dir", "a b"], True),
        (["python", "-mtrain.vit", "tiny"], ["tiny"], True),
        (["python", "-m", "training.vit", "train.vit"], ["train.vit"], False),
        (["python", "-m", "benchmarks.worker", "-m", "train.vit"], ["-m", "train.vit"], False),
    ],
)
def test_only_python_m_train_is_restarted(kernel: Path, monkeypatch, original, rest, restarts) -> None:
    restarted = []
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv("W2JAX_HUGE_PAGES", raising=False)
    monkeypatch.setattr(sys, "orig_argv", original)
    monkeypatch.setattr(sys, "argv", ["-m", *rest])
    monkeypatch.setattr(os, "execve", lambda path, command, environ: restarted.append((command, environ)))
    restart_with_huge_pages()
    assert [command for command, _ in restarted] == ([[sys.executable, *original[1:]]] if restarts else [])
    assert all(environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1" for _, environ in restarted)
    restarted.clear()
    monkeypatch.setenv("W2JAX_HUGE_PAGES", "0")
    restart_with_huge_pages()
    assert restarted == []


def test_importing_the_package_restarts_nothing() -> None:
    command = [sys.executable, "-c", "import os, train; print('GLIBC_TUNABLES' in os.environ)"]
    out = subprocess.run(command, env=without_tunables(), capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"


def test_a_restarted_program_keeps_its_arguments_and_its_status() -> None:
    command = [sys.executable, "-W", "error", "-m", "train.lstm", "no such preset", "--run.dir", "a b"]
    out = subprocess.run(command, env=without_tunables(), capture_output=True, text=True)
    assert out.returncode == 2 and "no such preset" in out.stderr
