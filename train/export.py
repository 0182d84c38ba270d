"""A trained model as files that other programs run: python -m train.export RUN_DIR [--out DIR]

`model.stablehlo` is the whole model with its weights, as a function of images, for any batch size, on CPU, GPU and TPU.
It needs no code of this project, nor Flax: `pip install jax flatbuffers` (a jax that is not older than the exporting
one; flatbuffers reads such files), and

    import jax.export

    model = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
    probabilities = model.call(images)  # uint8 [B, h, w, C] -> [B, V]; of an autoencoder its reconstructions

`model.safetensors` has the weights by their names here, laid out as torch.nn's, which `w2jax.convert` reads and turns
into those of other libraries; `images.json` has the shape of the images and the names of the classes.
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
from train.process.errors import UserError
from train.process.setup import silence_libraries
from train.run.atomic import write_atomic
from train.run.files import IMAGES
from w2jax import convert

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
            "python -m w2jax.convert writes its weights alone"
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


@dataclass(frozen=True)
class Options:
    """Writes a trained model as files that run elsewhere: StableHLO with its weights, and safetensors."""

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")]
    """Folder of a training, such as runs/vit-sample."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder to write into; by default RUN_DIR/exported."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(Options, "train.export", arguments)
    silence_libraries()
    out = options.out or options.run_dir / "exported"
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
