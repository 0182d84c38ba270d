"""Shows a trained model in the browser, to try it: python -m train.demo RUN_OR_WEIGHTS [--options]

    python -m train.demo runs/vit-sample      # draw a digit, drop images
    python -m train.demo runs/aae-sample      # move through the codes

It needs Gradio: pip install -e ".[demo]"
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Annotated

import tyro

from train.config.cli import read_options, run_main
from train.predict.options import ModelOptions, load_model
from train.process.errors import UserError
from train.process.setup import silence_libraries


@dataclass(frozen=True)
class Options(ModelOptions):
    """Shows a trained model in the browser, by default only on this machine. Press Ctrl-C to stop."""

    host: Annotated[str, tyro.conf.arg(metavar="ADDRESS")] = "127.0.0.1"
    """Address to listen on. 0.0.0.0 shows the page to every machine that can reach this one, without a password."""
    port: Annotated[int | None, tyro.conf.arg(metavar="PORT")] = None
    """Port to use. Default: a free one."""
    no_open: bool = False
    """Do not open the browser."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command until a signal ends it.

    Raises:
        UserError: the options or the run are wrong, the port is in use, or Gradio is not installed.
    """
    options = read_options(Options, "train.demo", arguments, __doc__)
    if getattr(find_spec("gradio"), "origin", None) is None:
        raise UserError('the demo needs the package gradio, which is not installed. Run: pip install -e ".[demo]"')
    silence_libraries()
    predictor = load_model(options)
    with TemporaryDirectory(prefix="w2jax-demo-") as folder:
        # Gradio reads these when it is imported: it keeps dropped files there, and sends no usage data.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        from train.demo.page import make_page
        from train.demo.serve import listen, serve

        with listen(options.host, options.port or 0) as listener:
            serve(make_page(predictor, options.run_or_weights), listener, options.host, not options.no_open)


if __name__ == "__main__":
    run_main(main)
