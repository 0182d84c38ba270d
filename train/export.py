"""Exports a trained model to files for other programs: python -m train.export RUN_DIR [--format FORMAT] [--out PATH]

`model.stablehlo` contains the model and its weights as a function of images, for any batch size, on CPU, GPU and TPU.
It needs neither this project nor Flax. Run `pip install jax flatbuffers`, with the same or a newer version of jax than
the exporting program. Then, in Python:

    import jax.export

    model = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
    probabilities = model.call(images)  # uint8 [B, h, w, C] -> [B, V]; an autoencoder returns reconstructions

`model.safetensors` contains the weights with this project's names and torch.nn's layouts. `w2jax.convert` reads it.
`images.json` contains the shape of the images and the names of the classes.

With `--format`, the program writes only the weights, with the names and layouts of another library:

    python -m train.export runs/vit-sample --format timm --out vit.safetensors
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro
from jax import export

from train.config.cli import read_options, run_main
from train.predict import Predictor, load
from train.process.errors import UserError, as_user_error
from train.process.setup import silence_libraries
from train.run.atomic import write_atomic
from train.run.files import IMAGES, read_config_tree
from train.run.folder import read_image_info
from train.run.weights import load_run
from w2jax import convert
from w2jax.convert.load_save import save_described

PROGRAM, WEIGHTS = "model.stablehlo", "model.safetensors"
PLATFORMS = ("cpu", "cuda", "tpu")
MOST_BYTES = 2**31 - 2**24  # largest size of the parameters: a flatbuffer's limit is 2 GiB, including the program


def stablehlo(predictor: Predictor) -> bytes:
    """Serializes the model and its weights as a `jax.export.Exported`: uint8 [B, h, w, C] -> the predictor's outputs.

    Raises:
        UserError: the model is not a function of images alone, is too large, or flatbuffers is not installed.
    """
    if (held := sum(x.nbytes for x in jax.tree.leaves(predictor.state.params))) > MOST_BYTES:
        raise UserError(
            f"the model must have less than 2 GiB of parameters for jax.export, got {held / 2**30:.1f} GiB. "
            "Run python -m train.export RUN_DIR --format torch to write only the weights"
        )
    (size,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((size, *predictor.image_shape), "uint8")
    function = jax.jit(lambda images: predictor.apply(predictor.state, images))
    exported = export.export(function, platforms=PLATFORMS)(images)
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        raise UserError(
            "exporting needs flatbuffers, which is not installed. Install it: pip install flatbuffers"
        ) from error


def export_run(run_dir: Path, out: Path) -> Predictor:
    """Writes a run's last valid checkpoint into `out` as the three files; returns the model as a Predictor.

    Raises:
        UserError: it is not a run folder, it has no checkpoint yet, `stablehlo` cannot export its model, or `out`
            cannot be written.
    """
    predictor = load(run_dir)
    program = stablehlo(predictor)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / PROGRAM, program)
        # "torch" is the only format that supports every model.
        convert.save(out / WEIGHTS, predictor.config.model, predictor.state.eval_variables, "torch")
        write_atomic(out / IMAGES, (run_dir / IMAGES).read_bytes())
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written: {error.strerror}. Choose another --out") from error
    return predictor


def export_weights(run_dir: Path, format: str, out: Path | None = None) -> dict[str, str]:
    """Writes the weights of a run's last valid checkpoint in another library's format; returns a table for the user.

    Args:
        run_dir: the run folder.
        format: "torch"; for a ViT, any format of `w2jax.convert.to_torch`.
        out: a weights file, or a folder for model.safetensors. The default is a file in RUN_DIR/exported, named
            after the format.

    Raises:
        UserError: it is not a run folder, it has no checkpoint yet, the format does not support its model, or `out`
            cannot be written.
    """
    suffixes = {
        "google": ".npz",
        "huggingface": "",
    }  # the usual files of these libraries; a folder also gets a config.json
    out = out or run_dir / "exported" / f"{format}{suffixes.get(format, '.safetensors')}"
    read_config_tree(run_dir)
    size = read_image_info(run_dir).image_shape[:2] if (run_dir / IMAGES).is_file() else None
    with as_user_error():
        module, variables, notes = load_run(run_dir)
        try:
            saved = save_described(out, module, variables, format, image_size=size)
        except (OSError, ImportError) as error:
            raise UserError(f"{out} cannot be written: {error}. Choose another --out") from error
    return {"read": f"{run_dir}: {'; '.join(notes)}"} | saved.rows(out)


@dataclass(frozen=True)
class Options:
    """Exports a trained model: as StableHLO with its weights, and its weights as safetensors."""

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")]
    """Run folder of a training, such as runs/vit-sample."""
    format: Annotated[
        str | None, tyro.conf.arg(metavar="timm|huggingface|torchvision|google|torch", help_behavior_hint="")
    ] = None
    """Write only the weights, with the names and layouts of this library.
    torch (torch.nn) works for every model. All other formats need a ViT."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """Output folder; default: RUN_DIR/exported. With --format, also a .safetensors, .npz, .pt or .pth file."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(Options, "train.export", arguments)
    silence_libraries()
    if options.format is not None:
        for name, text in export_weights(options.run_dir, options.format, options.out).items():
            print(f"{name:<12}{text}")
        return
    out = options.out or options.run_dir / "exported"
    if out.suffix and not out.is_dir():
        raise UserError(f"--out must be a folder, got {out}. Add --format to write one file of weights")
    predictor = export_run(options.run_dir, out)
    path, shape = str((out / PROGRAM).absolute()), ", ".join(map(str, predictor.image_shape))
    what = "probabilities" if predictor.classifies else "reconstructions"
    print(f"wrote {PROGRAM}, {WEIGHTS} and {IMAGES} into {out} ({predictor.note})")
    print(f'To run it elsewhere: pip install "jax>={jax.__version__}" flatbuffers. In Python, with a black image:\n')
    print("import jax.export, numpy")
    print(f"model = jax.export.deserialize(bytearray(open({path!r}, 'rb').read()))")
    print(f"images = numpy.zeros((1, {shape}), 'uint8')  # [B, h, w, C], any B")
    print(f"print(model.call(images))  # {what}")


if __name__ == "__main__":
    run_main(main)
