"""Predictions of a trained model: python -m train.predict RUN_DIR [IMAGE|FOLDER ...] [--options]

    python -m train.predict runs/vit-sample digit.png photos/     # a table
    python -m train.predict runs/vit-sample digit.png --attention looked.png
    python -m train.predict runs/aae-sample digit.png --out again.png
    python -m train.predict runs/aae-sample --sample 20 --out drawn.png

In Python: `predictor = train.predict.load("runs/vit-sample"); probabilities = predictor(images)`.
"""

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
from train.config.tasks import task_config_type, task_maker, task_names, task_of
from train.data.crops import central_box
from train.data.decode import IMAGE_ERRORS, MODES, decode, read_image_bytes
from train.data.source import AbstractSource
from train.process.errors import UserError, as_user_error
from train.process.setup import silence_libraries
from train.run.files import read_config_tree
from train.run.folder import ImageInfo, read_config, read_image_info
from train.run.weights import read_variables
from train.task import State, Task
from w2jax.text import one_line

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
_AT_ONCE = 256  # images


@dataclass(frozen=True)
class Predictor:
    """A trained model as a function of images."""

    task: Task
    config: Any
    """Of the run: that of its task."""
    image_shape: tuple[int, int, int]
    """(h, w, C) of the images that it reads."""
    label_names: list[str]
    """The name of each class."""
    note: str
    """Which parameters of the run these are, in words."""
    state: State
    """The parameters that the run evaluated, without the optimizer's state."""

    @property
    def classifies(self) -> bool:
        """Whether a call returns probabilities; else it returns reconstructions."""
        return self.task.probabilities is not None

    @property
    def apply(self) -> Callable[[State, Any], Any]:
        """(state, uint8 [B, h, w, C]) -> what a call returns, as a function to jit.

        Raises:
            UserError: the model neither classifies nor reconstructs images.
        """
        apply = self.task.probabilities or self.task.reconstruct
        if apply is None:
            hint = ", it draws them: use --sample N" if self.task.sample else ""
            raise UserError(f"this model is not a function of images alone{hint}")
        return apply

    def __call__(self, images: UInt8[np.ndarray, "B h w C"]) -> Float[np.ndarray, "B ..."]:
        """Probabilities [B, V]; of an autoencoder, reconstructions [B, h, w, C] in [0, 1].

        Raises:
            ValueError: the images have another shape or type.
            UserError: the model neither classifies nor reconstructs images.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape or not len(images):
            raise ValueError(f"images must be uint8 [B, *{self.image_shape}], got {images.dtype} {images.shape}")
        parts = [images[start : start + _AT_ONCE] for start in range(0, len(images), _AT_ONCE)]
        apply = jax.jit(self.apply)
        return np.concatenate([np.asarray(apply(self.state, part)) for part in parts])

    def sample(self, count: int, seed: int = 0) -> Float[np.ndarray, "B h w C"]:
        """Images drawn from a generative model, in [0, 1].

        Raises:
            UserError: the model generates no images, or count is not positive.
        """
        if self.task.sample is None:
            raise UserError(f"sample needs a generative model, such as a run of train.aae; got {_kind(self.config)}")
        if count < 1:
            raise UserError(f"--sample must be at least 1, got {count}")
        return np.asarray(self.task.sample(self.state, jax.random.key(seed), count))

    def read(self, paths: Sequence[Path]) -> UInt8[np.ndarray, "B h w C"]:
        """The images of files, of any size and mode, converted as those of the training were.

        Raises:
            UserError: a file is not a complete image.
        """
        height, width, channels = self.image_shape
        data = self.config.data
        part = None if data.crop is None else partial(central_box, size=(height, width))
        images = []
        for path in paths:
            try:
                images.append(decode(read_image_bytes(path, MODES[channels]), channels, (height, width), part))
            except IMAGE_ERRORS as error:
                raise UserError(f"{path} is not a complete image that can be read ({error})") from error
        return np.stack(images)


def load(run_dir: str | Path) -> Predictor:
    """The model of a run at its last undamaged checkpoint.

    Raises:
        UserError: it is not a run folder, has no checkpoint yet, or is of another version.
    """
    path = Path(run_dir)
    task = read_config_tree(path)["task"]
    if task is None:
        raise UserError(f"{path} was not made by a task of this project; the tasks are {', '.join(task_names())}")
    config = read_config(path, task_config_type(task))
    images = read_image_info(path)
    with as_user_error():
        variables, notes = read_variables(path)
    return make_predictor(config, images, variables, "; ".join(notes))


def make_predictor(config: Any, images: ImageInfo, variables: Mapping[str, Any], note: str) -> Predictor:
    """The model of a task's config with these variables, for such images.

    Raises:
        UserError: the config is of no task.
    """
    name = task_of(config)
    if name is None:
        raise UserError(f"{type(config).__module__} is not the file of a task; choose one of {', '.join(task_names())}")
    shape, labels = images.image_shape, images.label_names
    source = AbstractSource(
        config.data.name, "train", shape, len(labels), labels, count=1, open_split=lambda split: source
    )
    variables = jax.device_put(variables)  # Once, and not at every call.
    state = State(jnp.zeros((), jnp.int32), variables["params"], None, None, variables.get("batch_stats", {}))
    return Predictor(task_maker(name)(config, source), config, shape, labels, note, state)


def _kind(config: Any) -> str:
    return f"a {type(config.model).__name__}"


def files(places: Sequence[Path]) -> list[Path]:
    """The images among files and folders, a folder's in the order of their names.

    Raises:
        UserError: there is no such file, or no image in a folder.
    """
    image_files = []
    for place in places:
        inside = sorted(path for path in place.rglob("*") if path.suffix.lower() in _SUFFIXES) if place.is_dir() else []
        if not inside and not place.is_file():
            what = "holds no image" if place.is_dir() else "is no file"
            raise UserError(f"{place} {what}; wanted {', '.join(_SUFFIXES)}")
        image_files += inside or [place]
    return image_files


@dataclass(frozen=True)
class Options:
    """Predictions of a trained model: classes with their probabilities, or an autoencoder's reconstructions."""

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
    """PNG to write: each image with the model's attention in red (a ViT's last block, mean over its heads)."""
    out: Path | None = None
    """PNG to write: an autoencoder's images, each above its reconstruction, or its samples."""
    sample: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Images that an autoencoder draws from its prior."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(Options, "train.predict", arguments, __doc__)
    silence_libraries()
    predictor = load(options.run_dir)
    check_options(options, predictor)
    if options.sample is not None:
        _write(cast(Path, options.out), _rows(predictor.sample(options.sample)))
        return
    paths = files(options.images)
    images = predictor.read(paths)
    results = predictor(images)
    if predictor.classifies:
        _print_classes(predictor, paths, results, options)
    else:
        _write(cast(Path, options.out), _above(images / 255.0, results))
    if options.attention is not None:
        overlaid = np.asarray(jax.jit(cast(Callable, predictor.task.overlay))(predictor.state, images))
        _write(options.attention, _above(np.broadcast_to(images[..., :3] / 255.0, overlaid.shape), overlaid))


def check_options(options: Options, predictor: Predictor) -> None:
    """UserError if the options do not fit each other or the model."""
    if options.sample is not None and predictor.task.sample is None:
        raise UserError(f"--sample needs a generative model, such as a run of train.aae; got {_kind(predictor.config)}")
    if predictor.classifies and options.out is not None:
        raise UserError("--out is for autoencoders, such as a run of train.aae; --attention writes a ViT's attention")
    if not predictor.classifies and options.json:
        raise UserError("--json prints classes, and this model has none; --out images.png writes its images")
    if not predictor.classifies and options.out is None:
        raise UserError("the model's images need a PNG to be written to: add --out images.png")
    if options.attention is not None and predictor.task.overlay is None:
        raise UserError(
            f"--attention needs a model with attention, such as a run of train.vit; got {_kind(predictor.config)}"
        )
    if options.sample is not None and options.images:
        raise UserError(f"--sample takes no input images: leave out {options.images[0]}, or --sample")
    if options.sample is None and not options.images:
        raise UserError("give images, or folders of them, after the run folder")


def _above(images: Float[np.ndarray, "B h w C"], others: Float[np.ndarray, "B h w C"]) -> UInt8[np.ndarray, "H W C"]:
    """Images in rows, each above its counterpart."""
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


def _print_classes(predictor: Predictor, paths: Sequence[Path], probabilities: np.ndarray, options: Options) -> None:
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
        table.add_row(one_line(str(path)), *(f"{x['label']}  {x['probability']:.1%}" for x in row))
    Console(highlight=False, markup=False).print(table)


if __name__ == "__main__":
    run_main(main)
