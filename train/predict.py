"""Runs a trained model on images: python -m train.predict RUN_DIR [IMAGE|FOLDER ...] [--options]

    python -m train.predict runs/vit-sample digit.png photos/     # a table of classes
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
    """The run's config, of the type of its task."""
    image_shape: tuple[int, int, int]
    """(h, w, C) of the input images."""
    label_names: list[str]
    """The name of each class."""
    note: str
    """Describes which parameters of the run `state` contains."""
    state: State
    """The parameters that the run used for evaluation, without the optimizer's state."""

    @property
    def classifies(self) -> bool:
        """True if a call returns probabilities, False if it returns reconstructions."""
        return self.task.probabilities is not None

    @property
    def apply(self) -> Callable[[State, Any], Any]:
        """(state, uint8 [B, h, w, C]) -> the outputs of a call, as a function that can be jitted.

        Raises:
            UserError: the model neither classifies nor reconstructs images.
        """
        apply = self.task.probabilities or self.task.reconstruct
        if apply is None:
            hint = ". Use --sample N to generate images" if self.task.sample else ""
            raise UserError(f"this model cannot run on images alone{hint}")
        return apply

    def __call__(self, images: UInt8[np.ndarray, "B h w C"]) -> Float[np.ndarray, "B ..."]:
        """Returns probabilities [B, V], or an autoencoder's reconstructions [B, h, w, C] in [0, 1].

        Raises:
            ValueError: the images have a different shape or dtype.
            UserError: the model neither classifies nor reconstructs images.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape or not len(images):
            raise ValueError(f"images must be uint8 [B, *{self.image_shape}], got {images.dtype} {images.shape}")
        parts = [images[start : start + _AT_ONCE] for start in range(0, len(images), _AT_ONCE)]
        apply = jax.jit(self.apply)
        return np.concatenate([np.asarray(apply(self.state, part)) for part in parts])

    def sample(self, count: int, seed: int = 0) -> Float[np.ndarray, "B h w C"]:
        """Samples `count` images in [0, 1] from a generative model.

        Raises:
            UserError: the model is not generative, or `count` is not positive.
        """
        if self.task.sample is None:
            raise UserError(f"sample needs a generative model, such as a run of train.aae, got {_kind(self.config)}")
        if count < 1:
            raise UserError(f"--sample must be at least 1, got {count}")
        return np.asarray(self.task.sample(self.state, jax.random.key(seed), count))

    def read(self, paths: Sequence[Path]) -> UInt8[np.ndarray, "B h w C"]:
        """Reads image files of any size and mode, and converts them like the training images.

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
                raise UserError(f"{path} must be a complete image file, but it cannot be read ({error})") from error
        return np.stack(images)


def load(run_dir: str | Path) -> Predictor:
    """Loads the model of a run from its last valid checkpoint.

    Raises:
        UserError: it is not a run folder, it has no checkpoint yet, or a different version wrote it.
    """
    path = Path(run_dir)
    task = read_config_tree(path)["task"]
    if task is None:
        raise UserError(
            f"{path} must be a run of one of the tasks {', '.join(task_names())}, but its config names no task"
        )
    config = read_config(path, task_config_type(task))
    images = read_image_info(path)
    with as_user_error():
        variables, notes = read_variables(path)
    return make_predictor(config, images, variables, "; ".join(notes))


def make_predictor(config: Any, images: ImageInfo, variables: Mapping[str, Any], note: str) -> Predictor:
    """Makes a predictor from a task's config, the description of its images, and variables.

    Raises:
        UserError: the config does not belong to a task.
    """
    name = task_of(config)
    if name is None:
        raise UserError(f"{type(config).__module__} is not the file of a task. Choose one of {', '.join(task_names())}")
    shape, labels = images.image_shape, images.label_names
    source = AbstractSource(
        config.data.name, "train", shape, len(labels), labels, count=1, open_split=lambda split: source
    )
    variables = jax.device_put(variables)  # Done once here instead of in every call.
    state = State(jnp.zeros((), jnp.int32), variables["params"], None, None, variables.get("batch_stats", {}))
    return Predictor(task_maker(name)(config, source), config, shape, labels, note, state)


def _kind(config: Any) -> str:
    name = type(config.model).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def files(places: Sequence[Path]) -> list[Path]:
    """Lists the image files in `places`, which are files or folders. The images of a folder are sorted by name.

    Raises:
        UserError: a file does not exist, or a folder contains no image.
    """
    image_files = []
    for place in places:
        inside = sorted(path for path in place.rglob("*") if path.suffix.lower() in _SUFFIXES) if place.is_dir() else []
        if not inside and not place.is_file():
            what = "contains no image" if place.is_dir() else "does not exist"
            raise UserError(f"{place} {what}. Pass images ({', '.join(_SUFFIXES)}) or folders of images")
        image_files += inside or [place]
    return image_files


@dataclass(frozen=True)
class Options:
    """Runs a trained model on images: prints class probabilities, or writes an autoencoder's reconstructions."""

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")]
    """Run folder of a training, such as runs/vit-sample."""
    images: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[IMAGE|FOLDER ...]", help_behavior_hint="")
    ] = ()
    """Image files or folders of image files."""
    top_k: int = 3
    """Number of classes to print for each image, the most probable first."""
    json: bool = False
    """Print one JSON object per line for each image instead of a table."""
    attention: Path | None = None
    """PNG file to write: each image with the attention of a ViT's last block in red (mean over heads)."""
    out: Path | None = None
    """PNG file to write for an autoencoder: each image with its reconstruction below it.
    With --sample: the generated images."""
    sample: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Number of images to sample from an autoencoder's prior, instead of reading images."""


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
    """Raises UserError if the options do not match each other or the model."""
    if options.sample is not None and predictor.task.sample is None:
        raise UserError(f"--sample needs a generative model, such as a run of train.aae, got {_kind(predictor.config)}")
    if predictor.classifies and options.out is not None:
        raise UserError(
            f"--out needs an autoencoder, such as a run of train.aae, got {_kind(predictor.config)}. Leave it out"
        )
    if not predictor.classifies and options.json:
        raise UserError(f"--json needs a classifier, got {_kind(predictor.config)}. Use --out images.png instead")
    if not predictor.classifies and options.out is None:
        raise UserError("--out must be given for an autoencoder. Add --out images.png")
    if options.attention is not None and predictor.task.overlay is None:
        raise UserError(
            f"--attention needs a model with attention, such as a run of train.vit, got {_kind(predictor.config)}"
        )
    if options.sample is not None and options.images:
        raise UserError(
            f"--sample does not use input images, got {options.images[0]}. Leave out the images or --sample"
        )
    if options.sample is None and not options.images:
        raise UserError("images are missing. Add image files or folders after RUN_DIR")


def _above(images: Float[np.ndarray, "B h w C"], others: Float[np.ndarray, "B h w C"]) -> UInt8[np.ndarray, "H W C"]:
    """Images in rows, each above its counterpart in `others`."""
    return _rows(np.concatenate([images, others], axis=1))


def _rows(images: Float[np.ndarray, "B h w C"]) -> UInt8[np.ndarray, "H W C"]:
    """Images in [0, 1], ten per row. Black images fill up the last row."""
    columns = min(10, len(images))
    filled = np.concatenate([images, np.zeros((-len(images) % columns, *images.shape[1:]), images.dtype)])
    return rearrange((filled * 255).round().clip(0, 255).astype(np.uint8), "(r k) h w c -> (r h) (k w) c", k=columns)


def _write(path: Path, pixels: UInt8[np.ndarray, "H W C"]) -> None:
    """Writes a PNG file. Small images are enlarged."""
    zoom = max(1, 1000 // max(pixels.shape))
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    try:
        image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(path, "PNG")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. Choose another file") from error
    print(f"wrote {path}", file=sys.stderr)


def _print_classes(predictor: Predictor, paths: Sequence[Path], probabilities: np.ndarray, options: Options) -> None:
    """Prints the most probable classes of each image."""
    count = len(predictor.label_names)
    if not 1 <= options.top_k <= count:
        raise UserError(f"--top-k must be from 1 to {count}, the number of classes, got {options.top_k}")
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
