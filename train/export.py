"""A trained model as files that other programs run: python -m train.export RUN_DIR [--out DIR]

`model.stablehlo` is the whole model with its weights, as a function of images, for any batch size, on CPU, GPU and TPU.
It needs jax alone:

    model = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
    probabilities = model.call(images)  # uint8 [B, h, w, C] -> [B, V]; of an autoencoder its reconstructions

`model.safetensors` has the weights by their names here, for `python -m w2jax.convert` and other libraries, and
`images.json` the shape of the images and the names of the classes.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro
from jax import export

from train.cli import one_line_errors, run_main
from train.errors import UserError
from train.predict import Predictor, load
from train.run_folder import IMAGES
from train.whole import write_whole
from w2jax import convert

PLATFORMS = ("cpu", "cuda", "tpu")


def stablehlo(predictor: Predictor) -> bytes:
    """The model with its weights as a serialized `jax.export.Exported`: uint8 [B, h, w, C] -> what the predictor gives.

    Raises:
        UserError: if the model cannot be a function of images alone.
    """
    (size,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((size, *predictor.image_shape), "uint8")
    function = jax.jit(lambda images: predictor.apply(predictor.state, images))
    return bytes(export.export(function, platforms=PLATFORMS)(images).serialize())


def export_run(run_dir: Path, out: Path) -> None:
    """Writes the files of a run's last whole checkpoint into `out`.

    Raises:
        UserError: if it is no run folder, has no checkpoint yet, or `out` cannot be written.
    """
    predictor = load(run_dir)
    program = stablehlo(predictor)
    state = predictor.state
    variables = {"params": state.params, **({"batch_stats": state.batch_stats} if state.batch_stats else {})}
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "model.stablehlo", program)
        convert.save(out / "model.safetensors", predictor.config.model, variables)
        shutil.copyfile(run_dir / IMAGES, out / IMAGES)
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written: {error.strerror}; choose another --out") from error


@dataclass(frozen=True)
class Options:
    """Writes a trained model as files that run elsewhere: StableHLO with its weights, and safetensors."""

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")]
    """Folder of a training, such as runs/vit-sample."""
    out: Path | None = None
    """Folder to write into; by default RUN_DIR/exported."""


def main() -> None:
    with one_line_errors():
        options = tyro.cli(Options, prog="python -m train.export")
    out = options.out or options.run_dir / "exported"
    export_run(options.run_dir, out)
    print(f"wrote {out}. In a program that has jax alone:")
    print(f'    model = jax.export.deserialize(bytearray(open("{out / "model.stablehlo"}", "rb").read()))')
    print("    model.call(images)  # uint8 [B, h, w, C]")


if __name__ == "__main__":
    run_main(main)
