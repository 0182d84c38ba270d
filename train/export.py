"""A trained model as files for other programs: python -m train.export RUN_DIR [--format FORMAT] [--out PATH]

`model.stablehlo` is the whole model with its weights, as a function of images, for any batch size, on CPU, GPU and TPU.
It needs no code of this project, nor Flax: `pip install jax flatbuffers` (a jax that is not older than the exporting
one; flatbuffers reads such files), and

    import jax.export

    model = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
    probabilities = model.call(images)  # uint8 [B, h, w, C] -> [B, V]; of an autoencoder its reconstructions

`model.safetensors` has the weights with this project's names and torch.nn's layouts, which `w2jax.convert` reads;
`images.json` has the shape of the images and the names of the classes.

With `--format`, only the weights are written, with the names and layouts of another library:

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
MOST_BYTES = 2**31 - 2**24  # of parameters: a flatbuffer holds 2 GiB, and some of it is the program


def stablehlo(predictor: Predictor) -> bytes:
    """The model with its weights as a serialized `jax.export.Exported`: uint8 [B, h, w, C] -> what the predictor gives.

    Raises:
        UserError: if the model is no function of images alone or too large, or flatbuffers is not installed.
    """
    if (held := sum(x.nbytes for x in jax.tree.leaves(predictor.state.params))) > MOST_BYTES:
        raise UserError(
            f"the model has {held / 2**30:.1f} GiB of parameters, and a file of jax.export holds less than 2; "
            "python -m train.export RUN_DIR --format torch writes its weights alone"
        )
    (size,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((size, *predictor.image_shape), "uint8")
    function = jax.jit(lambda images: predictor.apply(predictor.state, images))
    exported = export.export(function, platforms=PLATFORMS)(images)
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        raise UserError("jax writes a model by flatbuffers, which is missing: pip install flatbuffers") from error


def export_run(run_dir: Path, out: Path) -> Predictor:
    """Writes the files of a run's last whole checkpoint into `out`, and returns what they do.

    Raises:
        UserError: if it is no run folder, has no checkpoint yet, `stablehlo` refuses its model, or `out` cannot be
            written.
    """
    predictor = load(run_dir)
    program = stablehlo(predictor)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / PROGRAM, program)
        # "torch" is the format that every model fits in.
        convert.save(out / WEIGHTS, predictor.config.model, predictor.state.eval_variables, "torch")
        write_atomic(out / IMAGES, (run_dir / IMAGES).read_bytes())
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written: {error.strerror}; choose another --out") from error
    return predictor


def export_weights(run_dir: Path, format: str, out: Path | None = None) -> dict[str, str]:
    """Writes the weights of a run's last intact checkpoint in another library's format; a table for the user.

    Args:
        run_dir: the run folder.
        format: "torch", or for a ViT one of those that `w2jax.convert.to_torch` takes.
        out: a weights file, or a folder for model.safetensors; by default in RUN_DIR/exported, named by the format.

    Raises:
        UserError: if it is not a run folder, has no checkpoint yet, the format cannot express its model, or `out`
            cannot be written.
    """
    suffixes = {"google": ".npz", "huggingface": ""}  # as these libraries store weights; a folder gets a config.json
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
    """Writes a trained model as files that run elsewhere: StableHLO with its weights, and safetensors."""

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")]
    """Folder of a training, such as runs/vit-sample."""
    format: Annotated[
        str | None, tyro.conf.arg(metavar="timm|huggingface|torchvision|google|torch", help_behavior_hint="")
    ] = None
    """Write only the weights, with this library's names and layouts; torch (torch.nn) is for every model, the others
    are for a ViT."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """Folder to write into (default: RUN_DIR/exported). With --format a .safetensors, .npz, .pt or .pth file, or a
    folder."""


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
    print(f'Elsewhere: pip install "jax>={jax.__version__}" flatbuffers, then in Python, here with a black image:\n')
    print("import jax.export, numpy")
    print(f"model = jax.export.deserialize(bytearray(open({path!r}, 'rb').read()))")
    print(f"images = numpy.zeros((1, {shape}), 'uint8')  # [B, h, w, C], any B")
    print(f"print(model.call(images))  # {what}")


if __name__ == "__main__":
    run_main(main)
