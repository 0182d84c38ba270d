"""With keep_freed_memory, the kernel maps no new memory in each call of a jitted function."""

import os
import platform
import subprocess
import sys

import pytest

# The temporary of 64 MiB is allocated in each call. Prints the new pages of 8 calls, in MiB.
PROGRAM = """
import resource, sys
from w2jax.cpu import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
import jax, jax.numpy as jnp

@jax.jit
def function(x):
    return jax.lax.fori_loop(0, 2, lambda i, y: y + i, jnp.full((4096, 4096), x)).sum()


x = jnp.ones(())
for _ in range(20):  # The first calls map memory in both cases.
    function(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    function(x).block_until_ready()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() // 2**20)
"""


@pytest.mark.skipif("glibc" not in platform.libc_ver()[0], reason="malloc is not glibc's")
def test_kept_memory_is_not_mapped_again():
    usual = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    mapped = {}
    for setting in ("default", "keep"):
        command = [sys.executable, "-c", PROGRAM, setting]
        mapped[setting] = int(subprocess.run(command, env=usual, capture_output=True, text=True, check=True).stdout)
    assert mapped["default"] >= 8 * 60 and mapped["keep"] < 0.75 * mapped["default"], mapped
