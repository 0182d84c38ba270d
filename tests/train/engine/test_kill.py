"""A run killed by SIGKILL at random moments gives an uninterrupted run's results, bit for bit (see kill_storm.py)."""

import random

import pytest

from tests.stress.comparing import differences
from tests.stress.kill_storm import Aim, kill_until_done
from tests.stress.running import Command, time_whole

pytestmark = pytest.mark.slow

# The autoencoder uses every part of a State: batch statistics, averaged parameters, three optimizers.
OPTIONS = (
    *("--run.steps", "40", "--run.log-every", "3", "--run.eval-every", "20", "--run.save-every", "8"),
    *("--run.batch-size", "16", "--data.train-split", "train[:200]", "--data.test-split", "test[:50]"),
    *("--metric-examples", "50", "--optim.ema", "0.9", "--run.compilation-cache", "on"),
)


def test_a_run_killed_at_random_moments_ends_in_the_same_bits(tmp_path):
    """The bits of an uninterrupted run."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # shown if the test fails
    rng = random.Random(seed)
    command = Command("aae", OPTIONS, {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")})
    took = time_whole(command, tmp_path / "whole")
    # There are five saves, and each kill among the steps waits for one. So the run is not finished before the last.
    aims = [
        Aim("start", 1, rng.uniform(0, took.start)),
        Aim("save", 1, rng.uniform(0, 0.05)),
        Aim("line", 1, rng.uniform(0, took.steps / 3)),
        Aim("save", 1, rng.uniform(0, 0.05), group=False),
        Aim("save", rng.randint(1, 2), rng.uniform(0, 0.05)),
        Aim("end", 1, rng.uniform(0, took.end)),
    ]
    hits, _ = kill_until_done(command, tmp_path / "killed", aims)
    print(hits)
    assert len(hits) >= 3
    assert not differences(tmp_path / "whole", tmp_path / "killed")
