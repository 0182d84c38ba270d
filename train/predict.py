"""What a trained model says of images: python -m train.predict RUN_DIR [IMAGE|FOLDER ...] [--options]

    python -m train.predict runs/vit-sample digit.png photos/     # a table
    python -m train.predict runs/vit-sample digit.png --attention looked.png
    python -m train.predict runs/aae-sample digit.png --out again.png
    python -m train.predict runs/aae-sample --sample 20 --out drawn.png

In Python: `predictor = train.predict.load("runs/vit-sample"); probabilities = predictor(images)`.
"""

import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image

from train.config.cli import read_options, run_main
from train.data.crops import central_box
from train.data.decode import BROKEN, MODES, decode, encoded
from train.data.source import AbstractSource
from train.evaluation.aae import evaluated, sampled, to_range, to_unit
from train.process.errors import UserError, as_user_error
from train.process.setup import silence_libraries
from train.run.files import TASKS, printable
from train.run.folder import ImageInfo, read_config, read_image_info, read_model
from train.run.weights import read_variables
from train.task import State
from w2jax.aae import AAE
from w2jax.vit import ViT

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
_AT_ONCE = 256  # images


@dataclass(frozen=True)
class Predictor:
    """A trained model as a function of images."""

    config: Any
    """Of the run: that of its task."""
    image_shape: tuple[int, int, int]
    """(h, w, C) of the images that it takes."""
    label_names: list[str]
    """What each class is called."""
    note: str
    """Which parameters they are, in words."""
    state: State
    """The parameters that the run evaluated, without the optimizer's state."""
    apply: Callable[[State, Any], Any]
    """(state, uint8 [B, h, w, C]) -> what a call gives, as a function to be jitted."""
    attention: Callable[[State, Any], Any] | None
    """(state, uint8 [B, h, w, C]) -> images from 0 to 1 [B, h, w, 3], red where a ViT looked; None: no ViT."""

    @property
    def classifies(self) -> bool:
        """Whether a call gives probabilities; else it gives reconstructions."""
        return not isinstance(self.config.model, AAE)

    def __call__(self, images: UInt8[np.ndarray, "B h w C"]) -> Float[np.ndarray, "B ..."]:
        """Probabilities [B, V]; of an autoencoder, reconstructions [B, h, w, C] in [0, 1].

        Raises:
            ValueError: if the images have another shape or type.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape or not len(images):
            raise ValueError(f"wanted uint8 images [B, *{self.image_shape}], got {images.dtype} {images.shape}")
        parts = [images[start : start + _AT_ONCE] for start in range(0, len(images), _AT_ONCE)]
        apply = jax.jit(self.apply)
        return np.concatenate([np.asarray(apply(self.state, part)) for part in parts])

    def read(self, paths: Sequence[Path]) -> UInt8[np.ndarray, "B h w C"]:
        """The images of files, of any size and mode, converted as the training's were.

        Raises:
            UserError: a file is no whole image.
        """
        height, width, channels = self.image_shape
        data = self.config.data
        part = None if data.crop is None else partial(central_box, size=(height, width))
        images = []
        for path in paths:
            try:
                images.append(decode(encoded(path, MODES[channels]), channels, (height, width), part))
            except BROKEN as error:
                raise UserError(f"{path} is no whole image that can be read ({error})") from error
        return np.stack(images)


def load(run_dir: str | Path) -> Predictor:
    """The model of a run at its last whole checkpoint.

    Raises:
        UserError: if it is no run folder, has no checkpoint yet, or is not of this version.
    """
    path = Path(run_dir)
    model = read_model(path)
    if type(model).__name__ not in TASKS:
        raise UserError(f"{path} is a run of a {type(model).__name__}; wanted one of {', '.join(TASKS)}")
    task = TASKS[type(model).__name__]
    config: Any = read_config(path, importlib.import_module(f"configs.{task}").Config)
    seen = read_image_info(path)
    with as_user_error():
        variables, notes = read_variables(path)
    return predictor_of(config, seen, variables, "; ".join(notes))


def predictor_of(config: Any, seen: ImageInfo, variables: Mapping[str, Any], note: str) -> Predictor:
    """The model of a task's config with these variables, for images as `seen` describes them."""
    variables = jax.device_put(variables)  # Once, and not at every call.
    state = State(jnp.zeros((), jnp.int32), variables["params"], None, None, variables.get("batch_stats", {}))
    task = TASKS[type(config.model).__name__]
    apply, attention = (_autoencoder(config), None) if task == "aae" else _classifier(config, task, *seen)
    return Predictor(config, *seen, note, state, apply, attention)


def _classifier(config: Any, task: str, image_shape: tuple[int, int, int], label_names: list[str]) -> tuple[Any, Any]:
    """(`apply`, `attention`), by the task itself, for images like those that it was trained on."""
    source = AbstractSource(config.data.name, "train", image_shape, len(label_names), label_names, count=1)
    made = importlib.import_module(f"train.{task}").make_task(config, source)
    return made.probabilities, partial(_overlaid, config.model) if task == "vit" else None


def _overlaid(model: ViT, state: State, images: Any) -> Any:
    """Images, red where a ViT looked in them."""
    from train.vit import looked, overlay

    pixels = images / 255.0
    return overlay(pixels, looked(model, state.eval_params, pixels))


def _autoencoder(config: Any) -> Callable[[State, Any], Any]:
    """Reconstructions."""
    model = config.model

    def reconstruct(state: State, images: Any) -> Any:
        if config.labels == "decoder":
            raise UserError(
                "this run's decoder is told each image's label, so it reconstructs none without; "
                "train.predict --sample draws images"
            )
        return to_unit(model, evaluated(model, state, lambda aae: aae.reconstruct(to_range(aae, images))))

    return reconstruct


def drawn(predictor: Predictor, count: int, seed: int = 0) -> Float[np.ndarray, "B h w C"]:
    """Images of `count` codes drawn from an autoencoder's prior, in [0, 1]; each class in turn, where it is told one.

    Raises:
        UserError: if the model is none, or count is not positive.
    """
    if predictor.classifies:
        raise UserError(f"--sample wants a run of train.aae, got one of a {type(predictor.config.model).__name__}")
    if count < 1:
        raise UserError(f"--sample: wanted at least 1 image, got {count}")
    classes, key = len(predictor.label_names), jax.random.key(seed)
    return np.asarray(sampled(predictor.config, classes, predictor.state, count, key))


def files(places: Sequence[Path]) -> list[Path]:
    """The images among files and folders, a folder's in the order of their names.

    Raises:
        UserError: there is no such file, or no image in a folder.
    """
    found = []
    for place in places:
        inside = sorted(path for path in place.rglob("*") if path.suffix.lower() in _SUFFIXES) if place.is_dir() else []
        if not inside and not place.is_file():
            what = "holds no image" if place.is_dir() else "is no file"
            raise UserError(f"{place} {what}; wanted {', '.join(_SUFFIXES)}")
        found += inside or [place]
    return found


@dataclass(frozen=True)
class Options:
    """What a trained model says of images: classes with their probabilities, or an autoencoder's reconstructions."""

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")]
    """Folder of a training, such as runs/vit-sample."""
    images: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[IMAGE|FOLDER ...]", help_behavior_hint="")
    ] = ()
    """Image files, or folders of them."""
    top_k: int = 3
    """Classes shown for each image, the likeliest first."""
    json: bool = False
    """Print one JSON object a line instead of a table."""
    attention: Path | None = None
    """PNG to write: each image with what a ViT looked at in red (the last block, mean over its heads)."""
    out: Path | None = None
    """PNG to write: an autoencoder's images, each above its reconstruction, or its samples."""
    sample: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Images that an autoencoder draws from its prior."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(Options, "train.predict", arguments, __doc__)
    silence_libraries()
    predictor = load(options.run_dir)
    if predictor.classifies and options.out is not None:
        raise UserError("--out is for runs of train.aae; what a ViT looked at is written by --attention")
    if not predictor.classifies and options.json:
        raise UserError("--json tells classes, and an autoencoder has none; its images are written by --out again.png")
    if not predictor.classifies and options.out is None:
        raise UserError("wanted a PNG to write the autoencoder's images to; name it by --out again.png")
    if options.attention is not None and predictor.attention is None:
        raise UserError("--attention wants a run of train.vit")
    if options.sample is not None:
        if options.images:
            raise UserError(f"--sample draws from the prior, of no image: leave out {options.images[0]}, or --sample")
        images = drawn(predictor, options.sample)
        _write(cast(Path, options.out), _rows(images))
        return
    if not options.images:
        raise UserError("wanted images or folders of them after the run folder")
    paths = files(options.images)
    images = predictor.read(paths)
    if predictor.classifies:
        _tell(predictor, paths, predictor(images), options)
    else:
        _write(cast(Path, options.out), _above(images / 255.0, predictor(images)))
    if predictor.attention is not None and options.attention is not None:
        looked = np.asarray(jax.jit(predictor.attention)(predictor.state, images))
        _write(options.attention, _above(np.broadcast_to(images[..., :3] / 255.0, looked.shape), looked))


def _above(images: Float[np.ndarray, "B h w C"], others: Float[np.ndarray, "B h w C"]) -> UInt8[np.ndarray, "H W C"]:
    """Images in rows, each above its other."""
    return _rows(np.concatenate([images, others], axis=1))


def _rows(images: Float[np.ndarray, "B h w C"]) -> UInt8[np.ndarray, "H W C"]:
    """Images from 0 to 1 in reading order, ten in a row, the last row filled up with black."""
    columns = min(10, len(images))
    filled = np.concatenate([images, np.zeros((-len(images) % columns, *images.shape[1:]), images.dtype)])
    return rearrange((filled * 255).round().clip(0, 255).astype(np.uint8), "(r k) h w c -> (r h) (k w) c", k=columns)


def _write(path: Path, pixels: UInt8[np.ndarray, "H W C"]) -> None:
    """Writes a PNG, small images enlarged."""
    zoom = max(1, 1000 // max(pixels.shape))
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    try:
        image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(path, "PNG")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    print(f"wrote {path}", file=sys.stderr)


def _tell(predictor: Predictor, paths: Sequence[Path], probabilities: np.ndarray, options: Options) -> None:
    """Prints the likeliest classes of each image."""
    count = len(predictor.label_names)
    if not 1 <= options.top_k <= count:
        raise UserError(f"--top-k: wanted a number from 1 to the {count} classes, got {options.top_k}")
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, : options.top_k]
    rows = [
        [{"label": predictor.label_names[k], "probability": float(row[k])} for k in order]
        for row, order in zip(probabilities, best, strict=True)
    ]
    if options.json:
        for path, row in zip(paths, rows, strict=True):
            print(json.dumps({"image": str(path), **row[0], "top": row}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("image", *(f"{k}." for k in range(1, options.top_k + 1)), caption=predictor.note)
    for path, row in zip(paths, rows, strict=True):
        table.add_row(printable(str(path)), *(f"{x['label']}  {x['probability']:.1%}" for x in row))
    Console(highlight=False, markup=False).print(table)


if __name__ == "__main__":
    run_main(main)
