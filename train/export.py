"""Exports a trained model to files for other programs: python -m train.export RUN_OR_WEIGHTS [--options]

    python -m train.export runs/vit-sample  # the model with its weights
    python -m train.export runs/vit-sample --format onnx --out vit.onnx
    python -m train.export vit.safetensors --format onnx --out vit.onnx
    python -m train.export runs/vit-sample --format timm --out vit.safetensors

Without `--format`, `model.stablehlo` contains the model and its weights as a function of 1 or more images, on CPU, GPU
and TPU. It runs without this project and without Flax: install jax (the same version or a newer one) and flatbuffers.
`model.safetensors` contains the weights with this project's names and torch.nn's layouts, and `images.json` the
shape of the images and the names of the classes. The program prints how to run the model in Python.

With `--format onnx`, one ONNX file contains the model with its weights. With any other format, the program writes only
the weights, with the names and layouts of the chosen library. `w2jax.convert` converts weights that do not come from a
run.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro
from jax import export

from configs.vit import Config
from train.config.cli import read_options, run_main
from train.engine.image_options import run_spec
from train.onnx_program import INPUT, check_installed, onnx_program
from train.predict import Predictor, run_predictor
from train.predict.loading import check_for_run
from train.predict.options import ModelOptions, given, load_model
from train.process.errors import UserError, as_user_error
from train.process.setup import silence_libraries
from train.run.atomic import check_no_link, write_atomic
from train.run.choose import LAST
from train.run.files import IMAGES, read_config_tree
from train.run.folder import ImageInfo, read_config, read_image_info
from train.run.weights import is_run_folder, load_run
from w2jax import convert
from w2jax.convert.files import has_weights
from w2jax.convert.saving import check_replaceable, save_described
from w2jax.image_spec import ImageSpec
from w2jax.text import format_bytes, one_line, printable

PROGRAM, WEIGHTS, ONNX = "model.stablehlo", "model.safetensors", "model.onnx"
PLATFORMS = ("cpu", "cuda", "tpu")
MOST_BYTES = 2**31 - 2**24  # largest size of the parameters: flatbuffers and ONNX files have at most 2 GiB in total


def stablehlo(predictor: Predictor) -> bytes:
    """Serializes the model and its weights as a `jax.export.Exported`: uint8 [B, h, w, C] -> the predictor's outputs.

    Raises:
        UserError: the model is not a function of images alone, is too large, or flatbuffers is not installed.
    """
    _check_size(predictor, "jax.export")
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


def export_run(run_dir: Path, out: Path, checkpoint: str = LAST, overwrite: bool = False) -> Predictor:
    """Writes a run's checkpoint ("last", "best" or a step) into `out` as the three files; returns a Predictor.

    With `overwrite`, also files are replaced that w2jax did not write.

    Raises:
        UserError: it is not a run folder, it has no such checkpoint, `stablehlo` cannot export its model, `out` is
            another run folder or has files that w2jax did not write, or cannot be written.
    """
    check_no_link(out, run_dir)
    read_config_tree(run_dir)
    into_itself = out.is_dir() and out.samefile(run_dir)
    if not into_itself:
        _check_is_no_run(out)
    if not overwrite:
        with as_user_error():
            check_replaceable(out / name for name in (PROGRAM, WEIGHTS, *([] if into_itself else [IMAGES])))
    predictor = run_predictor(run_dir, checkpoint)
    program = stablehlo(predictor)
    images = ImageInfo(predictor.image_shape, predictor.label_names)
    try:
        out.mkdir(parents=True, exist_ok=True)
        # "torch" is the only format that supports every model.
        spec = _spec(run_dir, images)
        convert.save(out / WEIGHTS, predictor.config.model, predictor.state.eval_variables, "torch", spec=spec)
        write_atomic(out / PROGRAM, program)  # After the weights, which show who wrote it.
        if not into_itself:  # The run's own file has more in it.
            write_atomic(out / IMAGES, json.dumps(images._asdict(), indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written: {error.strerror}. Choose another --out") from error
    return predictor


def export_weights(
    run_dir: Path, format: str, out: Path | None = None, checkpoint: str = LAST, overwrite: bool = False
) -> dict[str, str]:
    """Writes the weights of a run's checkpoint in another library's format; returns a table for the user.

    Args:
        run_dir: the run folder.
        format: "torch"; for a ViT, any format of `w2jax.convert.to_torch`.
        out: a weights file, or a folder for model.safetensors. The default is a file in RUN_DIR/exported, named
            after the format.
        checkpoint: "last", "best" (by the test metric that ranks runs) or a step.
        overwrite: replace files even if w2jax did not write them.

    Raises:
        UserError: it is not a run folder, it has no such checkpoint, the format does not support its model, `out` is a
            run folder or a file that w2jax did not write, or cannot be written.
    """
    suffixes = {
        "google": ".npz",
        "huggingface": "",
    }  # the usual files of these libraries; a folder also gets a config.json
    out = out or run_dir / "exported" / f"{format}{suffixes.get(format, '.safetensors')}"
    check_no_link(out, run_dir)
    read_config_tree(run_dir)
    _check_is_no_run(out)
    info = read_image_info(run_dir) if (run_dir / IMAGES).is_file() else None
    with as_user_error({"checkpoint": "--checkpoint"}):
        module, variables, notes = load_run(run_dir, checkpoint=checkpoint)
        try:
            size = None if info is None else info.image_shape[:2]
            names = None if info is None or len(info.label_names) != module.num_classes else info.label_names
            spec = None if info is None else _spec(run_dir, info)
            saved = save_described(
                out, module, variables, format, image_size=size, label_names=names, spec=spec, overwrite=overwrite
            )
        except (OSError, ImportError) as error:
            raise UserError(f"{out} cannot be written: {error}. Choose another --out") from error
    return {"read": f"{run_dir}: {'; '.join(notes)}"} | saved.rows(out)


def export_onnx(
    model: ModelOptions, out: Path | None = None, overwrite: bool = False
) -> tuple[Path, Predictor, dict[str, str]]:
    """Writes a model with its weights as an ONNX file; returns its path, the model, and a table for the user.

    Args:
        model: a run, or the weights of a ViT.
        out: a .onnx file, or a folder for model.onnx. The default is the folder RUN_DIR/exported of a run.
        overwrite: replace the file even if w2jax did not write it.

    Raises:
        UserError: the model cannot be loaded, `onnx_program` cannot export it, `out` is a run folder or a file that
            w2jax did not write, or cannot be written, or there is no `out` for weights.
    """
    place = Path(model.run_or_weights)
    if out is None and not is_run_folder(place):
        raise UserError(f"--out is required for weights, got only {place}. Add --out FILE.onnx")
    out = out or place / "exported"
    path = out if out.suffix and not out.is_dir() else out / ONNX
    if path.suffix != ".onnx":
        raise UserError(f"--out must be a folder or a .onnx file, got {out}. Choose another --out")
    if is_run_folder(place):
        check_no_link(path, place)
    _check_is_no_run(out)
    if not overwrite:
        with as_user_error():
            check_replaceable([path])
    check_installed()
    predictor = load_model(model)
    _check_size(predictor, "ONNX")
    program = onnx_program(predictor)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, program.content)
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be written: {error.strerror}. Choose another --out"
        ) from error
    told = program.metadata
    return (
        path,
        predictor,
        {
            "read": f"{place}: {predictor.note}",
            "written": f"{path}: {format_bytes(len(program.content))}, opset {told['opset']}, computes in float32",
            "checked": f"ONNX Runtime's outputs differ from the model's by at most {program.difference:.1g}",
            "input": f"{INPUT}: {told[f'input_{INPUT}']}",
            "images": told["preprocessing"],
            "output": f"{program.output}: {told[f'output_{program.output}']}",
        },
    )


def _check_size(predictor: Predictor, form: str) -> None:
    """Raises UserError if a file with the program and the weights would be too large."""
    if (held := sum(x.nbytes for x in jax.tree.leaves(predictor.state.params))) > MOST_BYTES:
        raise UserError(
            f"the model must have less than 2 GiB of parameters for {form}, got {held / 2**30:.1f} GiB. "
            "Run python -m train.export RUN_DIR --format torch to write only the weights"
        )


def _spec(run_dir: Path, images: ImageInfo) -> ImageSpec | None:
    """Returns how a run of train.vit prepares images; None for other runs, whose models normalize in another way."""
    return run_spec(read_config(run_dir, Config), images) if read_config_tree(run_dir)["task"] == "vit" else None


def _check_is_no_run(out: Path) -> None:
    """Raises UserError if `out` is a run folder, whose files would be replaced."""
    if is_run_folder(out):
        raise UserError(f"--out must not be a run folder, got {out}. Choose another --out")


def _check_is_run(options: ModelOptions) -> None:
    """Raises UserError if the options name weights instead of a run folder, or have options for weights."""
    place = Path(options.run_or_weights)
    if not is_run_folder(place) and has_weights(place):
        raise UserError(
            f"RUN_OR_WEIGHTS must be a run folder without --format onnx, got {place}. Add --format onnx, or convert "
            "the weights with python -m w2jax.convert"
        )
    check_for_run(place, [*given(options)])


@dataclass(frozen=True)
class Options(ModelOptions):
    """Exports a trained model: as StableHLO or ONNX with its weights, or only its weights."""

    format: Annotated[
        str | None, tyro.conf.arg(metavar="onnx|timm|huggingface|torchvision|google|torch", help_behavior_hint="")
    ] = None
    """onnx: write the model with its weights as one ONNX file (pip install -e ".[onnx]").
    Other formats: write only the weights, with the names and layouts of the chosen library.
    Only onnx accepts pretrained weights. Everything else, also without --format, needs a run.
    torch (torch.nn) works for every model. The other libraries' formats need a ViT."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """Output folder; default: exported in the run folder. Required for pretrained weights.
    With --format, also a file: .onnx for onnx, otherwise .safetensors, .npz, .pt or .pth."""
    overwrite: bool = False
    """Also replace files that w2jax did not write. Without this option, such a file stops the command."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(Options, "train.export", arguments, __doc__)
    silence_libraries()
    run_dir = Path(options.run_or_weights)
    if options.format == "onnx":
        path, predictor, table = export_onnx(options, options.out, options.overwrite)
        for name, text in table.items():
            print(printable(f"{name:<12}{text}"))
        shape = ", ".join(map(str, predictor.image_shape))
        print("\nTo run it elsewhere: pip install onnxruntime. In Python, with a black image:\n")
        print("import numpy, onnxruntime")
        print(f"model = onnxruntime.InferenceSession({str(path.absolute())!r})")
        print(f"images = numpy.zeros((1, {shape}), 'uint8')  # [B, h, w, C], any B above 0")
        print(f"print(model.run(None, {{{INPUT!r}: images}})[0])")
        return
    _check_is_run(options)
    if options.format is not None:
        table = export_weights(run_dir, options.format, options.out, options.checkpoint, options.overwrite)
        for name, text in table.items():
            print(printable(f"{name:<12}{text}"))
        return
    out = options.out or run_dir / "exported"
    if out.suffix and not out.is_dir():
        raise UserError(f"--out must be a folder, got {out}. Add --format to write one file")
    predictor = export_run(run_dir, out, options.checkpoint, options.overwrite)
    path, shape = str((out / PROGRAM).absolute()), ", ".join(map(str, predictor.image_shape))
    what = "probabilities" if predictor.classifies else "reconstructions"
    print(one_line(f"wrote {PROGRAM}, {WEIGHTS} and {IMAGES} into {out} ({predictor.note})"))
    print(f'To run it elsewhere: pip install "jax>={jax.__version__}" flatbuffers. In Python, with a black image:\n')
    print("import jax.export, numpy")
    print(f"model = jax.export.deserialize(bytearray(open({path!r}, 'rb').read()))")
    print(f"images = numpy.zeros((1, {shape}), 'uint8')  # [B, h, w, C], any B above 0")
    print(f"print(model.call(images))  # {what}")


if __name__ == "__main__":
    run_main(main)
