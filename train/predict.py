"""Runs a trained model on images: python -m train.predict RUN_OR_WEIGHTS [IMAGE|FOLDER ...] [--options]

    python -m train.predict runs/vit-sample digit.png photos/     # a table of classes
    python -m train.predict vit.safetensors photo.jpg             # weights of timm, Hugging Face and others
    python -m train.predict runs/vit-sample digit.png --attention looked.png
    python -m train.predict runs/aae-sample digit.png --out again.png
    python -m train.predict runs/aae-sample --sample 20 --out drawn.png

In Python: `predictor = train.predict.load("runs/vit-sample"); probabilities = predictor(images)`.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from einops import rearrange
from jaxtyping import Float, UInt8

from train.config.cli import read_options, run_main
from train.config.tasks import task_config_type, task_maker, task_names, task_of
from train.data.crops import central_box
from train.data.decode import IMAGE_ERRORS, MODES, SUFFIXES, decode, read_image_bytes
from train.data.image_files import LeftOut, Listing, describe, list_images
from train.data.normalize import mean_and_std
from train.data.open import resizing_spec
from train.data.source import AbstractSource, Source
from train.engine.init_from import as_weights_error, weights_config
from train.process.errors import UserError, as_user_error
from train.process.setup import silence_libraries
from train.report.pictures import encode_png
from train.run.atomic import check_no_link, write_atomic
from train.run.choose import LAST
from train.run.files import read_config_tree
from train.run.folder import ImageInfo, read_config, read_image_info
from train.run.record import read_task_info
from train.run.weights import check_layers, is_run_folder, read_variables
from train.task import State, Task, array_differences
from w2jax.convert.files import has_weights
from w2jax.convert.hub import is_name
from w2jax.image_spec import ImageSpec
from w2jax.pretrained import load_pretrained
from w2jax.text import one_line, shorten

_AT_ONCE = 256  # images
_MOST_SAMPLES = 10_000


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
    spec: ImageSpec | None = None
    """How `read` resizes and cuts images. None: as the options of a run without `--data.resize` say."""

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
        probabilities, apply = self.task.probabilities, self.task.reconstruct
        if probabilities is not None:
            return lambda state, images: probabilities(state, {"image": images})
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
        if not 1 <= count <= _MOST_SAMPLES:
            raise UserError(f"--sample must be from 1 to {_MOST_SAMPLES}, got {count}")
        return np.asarray(self.task.sample(self.state, jax.random.key(seed), count))

    def read(self, paths: Sequence[Path]) -> UInt8[np.ndarray, "B h w C"]:
        """Reads image files of any size and mode, and converts them like the images of the evaluation.

        Raises:
            UserError: a file cannot be read as an image.
        """
        height, width, channels = self.image_shape
        data = self.config.data
        part = None if data.crop is None else partial(central_box, size=(height, width))
        resizing = (height, width), part, data.interpolation or "bilinear", self.spec
        images = []
        for path in paths:
            try:
                images.append(decode(read_image_bytes(path, MODES[channels]), channels, *resizing)[0])
            except IMAGE_ERRORS as error:
                raise UserError(f"{path} cannot be read as an image ({error})") from error
        return np.stack(images)


def load(run_or_weights: str | Path, checkpoint: str = LAST, spec: ImageSpec | None = None) -> Predictor:
    """Loads the model of a run, or a ViT that `w2jax.convert.load` reads.

    Args:
        run_or_weights: a run folder, a file or folder with weights, or the name of a model on the Hugging Face hub.
        checkpoint: the checkpoint of a run: "last", "best" (by the test metric that ranks runs) or a step.
        spec: how images must be prepared for the weights. None: as the files beside them say.

    Raises:
        UserError: it is none of these, or of another version; the run has no such checkpoint; the weights have no
            classifier, or do not say how to prepare images and there is no `spec`.
    """
    path, is_on_hub = Path(run_or_weights), is_name(str(run_or_weights))
    if not path.exists() and not is_on_hub:
        raise UserError(
            f"{path} does not exist. Pass a run folder, such as runs/vit-sample, weights, or the name of a model on "
            "the Hugging Face hub"
        )
    if is_on_hub or (not is_run_folder(path) and has_weights(path)):
        if checkpoint != LAST:
            raise UserError(f"--checkpoint must be left out for weights, got {checkpoint}. Only run folders have them")
        return _load_weights(str(run_or_weights), spec)
    if spec is not None:
        raise UserError(f"--normalize and --image-size must be left out for a run, got {path}. Leave them out")
    return run_predictor(path, checkpoint)


def run_predictor(path: Path, checkpoint: str) -> Predictor:
    """Loads the model of a run, as `load`."""
    task = read_config_tree(path)["task"]
    if not isinstance(task, str):
        raise UserError(
            f"{path} must be a run of one of the tasks {', '.join(task_names())}, but its config names no task"
        )
    config = read_config(path, task_config_type(task))
    images = read_image_info(path)
    with as_user_error({"checkpoint": "--checkpoint"}):
        variables, notes = read_variables(path, lambda shapes: _check_shapes(config, images, shapes), checkpoint)
    notes += filter(None, [read_task_info(path, []).adapted])
    return make_predictor(config, images, variables, "; ".join(notes))


def _load_weights(name_or_path: str, spec: ImageSpec | None) -> Predictor:
    config, spec, note = weights_config(name_or_path, spec)
    path = str(config.init_from)  # with the commit of a model on the hub
    height, width = spec.image_size
    names = spec.label_names or tuple(f"class {k}" for k in range(config.model.num_classes))
    images = ImageInfo((height, width, spec.channels), list(names))
    with as_weights_error():
        variables = load_pretrained(path, spec).variables
    with as_user_error():
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), variables["params"])
        expected = jax.eval_shape(_make_task(config, images).init).params
    if (differences := array_differences({"params": params}, {"params": expected})) is not None:
        raise UserError(f"{path} must fit images of shape [{height}, {width}, {spec.channels}], but {differences}")
    return replace(make_predictor(config, images, {"params": params}, note), spec=spec)


def make_predictor(config: Any, images: ImageInfo, variables: Mapping[str, Any], note: str) -> Predictor:
    """Makes a predictor from a task's config, the description of its images, and variables.

    Raises:
        UserError: the config does not belong to a task.
    """
    variables = jax.device_put(variables)  # Done once here instead of in every call.
    state = State(jnp.zeros((), jnp.int32), variables["params"], None, None, variables.get("batch_stats", {}))
    spec = resizing_spec(config.data, images.image_shape)
    return Predictor(_make_task(config, images), config, *images, note, state, spec)


def _make_task(config: Any, images: ImageInfo) -> Task:
    name = task_of(config)
    if name is None:
        raise UserError(f"{type(config).__module__} is not the file of a task. Choose one of {', '.join(task_names())}")
    return task_maker(name)(config, _abstract(config, images))


def _abstract(config: Any, images: ImageInfo) -> Source:
    shape, labels = images
    source = AbstractSource(
        config.data.name, "train", shape, len(labels), labels, count=1, open_split=lambda split: source
    )
    return source


def _check_shapes(config: Any, images: ImageInfo, shapes: Mapping[str, Any]) -> None:
    """Raises ValueError if variables of these shapes are not those that the config's task trains."""
    check_layers(config.model, shapes)
    try:
        state = jax.eval_shape(_make_task(config, images).init)
    except Exception as error:  # For wrong sizes in a file, the model's code may raise any exception.
        reason = shorten((str(error) or type(error).__name__).splitlines()[0])
        raise ValueError(f"config.json and images.json must describe a model that can be built: {reason}") from error
    expected = {"params": state.params, "batch_stats": state.batch_stats}
    if (differences := array_differences(shapes, expected)) is not None:
        raise ValueError(f"the parameters must be those of the model in config.json, but {differences}")


def _kind(config: Any) -> str:
    name = type(config.model).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def files(places: Sequence[Path]) -> Listing:
    """Lists the image files in `places`, which are files or folders. The images of a folder are sorted by name.

    Every file of `places` itself counts as an image. Places that do not exist or contain no image are unreadable.
    """
    listing = Listing()
    for place in places:
        try:
            is_folder, is_file, exists = place.is_dir(), place.is_file(), place.exists()
        except OSError as error:
            listing.unreadable.append(LeftOut(place, f"cannot be read ({error.strerror})"))
            continue
        found = list_images(place) if is_folder else Listing([place] if is_file else [])
        listing.images.extend(found.images)
        listing.left_out.extend(found.left_out)
        listing.unreadable.extend(LeftOut(path, f"cannot be read ({reason})") for path, reason in found.unreadable)
        if not found.images and not found.unreadable:
            what = "contains no image" if is_folder else "is not a file" if exists else "does not exist"
            listing.unreadable.append(
                LeftOut(place, f"{what}. Pass images ({', '.join(SUFFIXES)}) or folders of images")
            )
    return listing


@dataclass(frozen=True)
class Options:
    """Runs a trained model on images: prints class probabilities, or writes an autoencoder's reconstructions."""

    run_or_weights: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN_OR_WEIGHTS")]
    """Run folder, such as runs/vit-sample. Or the weights of a ViT: a file or folder from timm,
    Hugging Face, torchvision, Google or w2jax, or the name of a model on the Hugging Face hub."""
    images: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[IMAGE|FOLDER ...]", help_behavior_hint="")
    ] = ()
    """Image files or folders of image files."""
    checkpoint: Annotated[str, tyro.conf.arg(metavar="last|best|STEP")] = LAST
    """Checkpoint of a run: the last one, the one with the best test metric, or the one of a step."""
    top_k: int | None = None
    """Number of classes to print for each image, the most probable first. Default: 3, or all if there are fewer."""
    json: bool = False
    """Print one JSON object per line for each image instead of a table."""
    attention: Path | None = None
    """PNG file to write: each image with the attention of a ViT's last block in red (mean over heads)."""
    out: Path | None = None
    """PNG file to write for an autoencoder: each image with its reconstruction below it.
    With --sample: the generated images."""
    sample: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Number of images to sample from an autoencoder's prior, instead of reading images."""
    skip_corrupt: bool = False
    """Exit with status 0 even if some images cannot be read. Without this option, the status is 1 then."""
    normalize: Literal["half", "imagenet", "clip", "none"] | None = None
    """Normalization, in place of that in the files of the weights. Pass --image-size too."""
    image_size: Annotated[tuple[int, int] | None, tyro.conf.arg(metavar="HEIGHT WIDTH")] = None
    """Size in pixels to which images are resized and cut, in place of that in the files of the weights."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status, 1 if some images could not be read.

    Raises:
        UserError: the options or the run are wrong, or no image can be read.
    """
    options = read_options(Options, "train.predict", arguments, __doc__)
    silence_libraries()
    predictor = load(options.run_or_weights, options.checkpoint, _spec(options))
    place = Path(options.run_or_weights)
    check_options(options, predictor)
    if options.json or not predictor.classifies:
        print(f"read {one_line(predictor.note)}", file=sys.stderr)  # A table has the note below it.
    if options.sample is not None:
        _write(cast(Path, options.out), _rows(predictor.sample(options.sample)), place)
        return 0
    paths, images, is_complete = _read_all(predictor, options.images)
    results = predictor(images)
    if predictor.classifies:
        _print_classes(predictor, paths, results, options)
    else:
        _write(cast(Path, options.out), _above(images / 255.0, results), place)
    if options.attention is not None:
        overlaid = np.asarray(jax.jit(cast(Callable, predictor.task.overlay))(predictor.state, images))
        _write(
            options.attention,
            _above(np.broadcast_to(images[..., :3] / 255.0, overlaid.shape), overlaid),
            place,
        )
    return 0 if is_complete or options.skip_corrupt else 1


def _spec(options: Options) -> ImageSpec | None:
    """Returns the description of the images from the options; None if the user passed no such option."""
    if options.normalize is None and options.image_size is None:
        return None
    if options.normalize is None or options.image_size is None:
        raise UserError("--normalize and --image-size must be given together. Add the other one")
    mean, std = mean_and_std(options.normalize)
    repeats = 3 // len(mean)
    height, width = options.image_size
    resize = height if height == width else options.image_size
    with as_user_error({"image_size": "--image-size", "resize": "--image-size"}):
        return ImageSpec(options.image_size, resize, mean=mean * repeats, std=std * repeats, stretch=False)


def _read_all(predictor: Predictor, places: Sequence[Path]) -> tuple[list[Path], UInt8[np.ndarray, "B h w C"], bool]:
    """Returns the images that can be read, with their paths, and whether these are all. Lists the others on stderr.

    Raises:
        UserError: no image can be read.
    """
    listing = files(places)
    for line in describe(listing.left_out):
        print(f"left out, {line}", file=sys.stderr)
    bad, paths, images = [f"{path} {reason}" for path, reason in listing.unreadable], [], []
    for path in listing.images:
        try:
            images.append(predictor.read([path]))
            paths.append(path)
        except UserError as error:
            bad.append(str(error))
    if not images and len(bad) == 1:
        raise UserError(bad[0])
    for message in bad:
        print(one_line(f"not read: {message}"), file=sys.stderr)
    if not images:
        raise UserError(f"none of the {len(bad)} images can be read. Pass at least one complete image")
    return paths, np.concatenate(images), not bad


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
    count = len(predictor.label_names)
    if predictor.classifies and options.top_k is not None and not 1 <= options.top_k <= count:
        raise UserError(f"--top-k must be from 1 to {count}, the number of classes, got {options.top_k}")
    if options.sample is None and not options.images:
        raise UserError("images are missing. Add image files or folders after RUN_OR_WEIGHTS")


def _above(images: Float[np.ndarray, "B h w C"], others: Float[np.ndarray, "B h w C"]) -> UInt8[np.ndarray, "H W C"]:
    """Images in rows, each above its counterpart in `others`."""
    return _rows(np.concatenate([images, others], axis=1))


def _rows(images: Float[np.ndarray, "B h w C"]) -> UInt8[np.ndarray, "H W C"]:
    """Images in [0, 1], ten per row. Black images fill up the last row."""
    columns = min(10, len(images))
    filled = np.concatenate([images, np.zeros((-len(images) % columns, *images.shape[1:]), images.dtype)])
    return rearrange((filled * 255).round().clip(0, 255).astype(np.uint8), "(r k) h w c -> (r h) (k w) c", k=columns)


def _write(path: Path, pixels: UInt8[np.ndarray, "H W C"], run_dir: Path) -> None:
    """Writes a PNG file, but not through a link in the run folder. Small images are enlarged."""
    zoom = max(1, 1000 // max(pixels.shape))
    check_no_link(path.parent, run_dir)
    large = pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)
    try:
        write_atomic(path, encode_png(large[..., 0] if large.shape[-1] == 1 else large))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. Choose another file") from error
    print(one_line(f"wrote {path}"), file=sys.stderr)


def _print_classes(predictor: Predictor, paths: Sequence[Path], probabilities: np.ndarray, options: Options) -> None:
    """Prints the most probable classes of each image."""
    top_k = min(3, len(predictor.label_names)) if options.top_k is None else options.top_k
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
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

    table = Table("image", *(f"{k}." for k in range(1, top_k + 1)), caption=one_line(predictor.note))
    for path, row in zip(paths, rows, strict=True):
        table.add_row(one_line(str(path)), *(one_line(f"{x['label']}  {x['probability']:.1%}") for x in row))
    Console(highlight=False, markup=False).print(table)


if __name__ == "__main__":
    run_main(main)
