"""The main function of every training program, `python -m train.TASK [PRESET] [--options]`."""

import sys
from collections.abc import Callable
from typing import Any

from configs.base import Config
from train.config.checks import check_ranges
from train.process.setup import prepare_process
from train.process.streams import lasting


def train_program(config: Config, make_task: Callable[..., Any]) -> None:
    """Changes the settings of this process for training, then trains the task of a config.

    Raises:
        UserError, RunStopped, Interrupted: as `train.engine.loop.fit`.
    """
    sys.stdout = lasting(sys.stdout, discard=True)
    check_ranges(config)
    prepare_process(config)
    from train.engine.loop import fit  # Late import: --help and errors in the options should not wait for orbax.

    fit(config, make_task)
