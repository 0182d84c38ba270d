"""Measures the peak memory of attention, forward and backward, with `implementation="chunked"` and with "xla".

    python -m benchmarks.attention_memory [--tokens 16384] [--blocks 512 512]

Each implementation runs once in its own process: batch 1, 4 heads of width 64, float32. The program prints the peak
resident memory of the process (with Python and jax), the size of XLA's temporaries, and the seconds.
"""

import argparse
import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp

import w2jax.kernels.attention
from benchmarks.worker import peak_memory
from w2jax import scaled_dot_product_attention

HEADS, WIDTH = 4, 64


def measure(implementation: str, tokens: int, blocks: list[int]) -> dict[str, float]:
    """Returns the memory in GB and the seconds of one forward and backward pass in this process."""
    w2jax.kernels.attention.QUERY_BLOCK, w2jax.kernels.attention.KEY_BLOCK = blocks

    def loss(q, k, v):
        out, _ = scaled_dot_product_attention(q, k, v, return_weights=False, implementation=implementation)
        return (out**2).sum()

    q, k, v = (jax.random.normal(jax.random.key(i), (1, HEADS, tokens, WIDTH)) for i in range(3))
    step = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, k, v).compile()
    start = time.perf_counter()
    gradients = jax.block_until_ready(step(q, k, v))
    seconds = time.perf_counter() - start
    assert all(jnp.isfinite(g).all() for g in gradients)
    return {
        "peak": peak_memory() * 2**20 / 1e9,
        "temporaries": step.memory_analysis().temp_size_in_bytes / 1e9,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--tokens", type=int, default=16384, help="number of tokens (default: 16384, for which xla needs 20 GB)"
    )
    parser.add_argument(
        "--blocks", type=int, nargs=2, default=[512, 512], help="block sizes of queries and keys (default: 512 512)"
    )
    parser.add_argument("--child", choices=("chunked", "xla"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.tokens, options.blocks)))
        return
    for implementation in ("chunked", "xla"):
        command = [sys.executable, "-m", "benchmarks.attention_memory", *sys.argv[1:], "--child", implementation]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        print(
            f"{implementation:<8} {found['peak']:6.2f} GB peak, {found['temporaries']:6.2f} GB of temporaries, "
            f"{found['seconds']:6.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
