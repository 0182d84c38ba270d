"""Runs a trained model on images: python -m train.predict RUN_OR_WEIGHTS [IMAGE|FOLDER ...] [--options]

    python -m train.predict runs/vit-sample digit.png photos/
    python -m train.predict vit.safetensors photo.jpg  # of timm and others
    python -m train.predict runs/vit-sample digit.png --attention looked.png
    python -m train.predict vit.safetensors photo.jpg --rollout talk
    python -m train.predict runs/aae-sample digit.png --out again.png
    python -m train.predict runs/aae-sample --sample 20 --out drawn.png

In Python: `predictor = train.predict.load("runs/vit-sample")`, then `predictor(images)`.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import jax
import numpy as np
import tyro
from jaxtyping import UInt8

from train.config.cli import read_options, run_main
from train.data.decode import SUFFIXES
from train.data.image_files import LeftOut, Listing, describe, list_images
from train.predict.options import ModelOptions, load_model
from train.predict.output import above, in_rows, print_classes, write_png
from train.predict.predictor import Predictor, kind_of
from train.process.errors import UserError
from train.process.setup import silence_libraries
from w2jax.text import count_of, one_line


@dataclass(frozen=True)
class Options(ModelOptions):
    """Runs a trained model on images: prints class probabilities, or writes an autoencoder's reconstructions."""

    images: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[IMAGE|FOLDER ...]", help_behavior_hint="")
    ] = ()
    """Image files or folders of image files."""
    top_k: int | None = None
    """Number of classes to print for each image, the most probable first. Default: 3, or all if there are fewer."""
    json: bool = False
    """Print one JSON object per line for each image instead of a table."""
    attention: Path | None = None
    """PNG file to write: each image with the attention of a ViT's last block in red (mean over heads)."""
    rollout: Path | None = None
    """Folder for a PNG and an SVG file of each photo: the photo in its own size, with a ViT's attention through
    all blocks in color, and the most probable classes as caption."""
    overwrite: bool = False
    """With --rollout: replace files that exist."""
    out: Path | None = None
    """PNG file to write for an autoencoder: each image with its reconstruction below it.
    With --sample: the generated images."""
    sample: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Number of images to sample from an autoencoder's prior, instead of reading images."""
    skip_corrupt: bool = False
    """Exit with status 0 even if some images cannot be read. Without this option, the status is 1 then."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status, 1 if some images could not be read.

    Raises:
        UserError: the options or the run are wrong, or no image can be read.
    """
    options = read_options(Options, "train.predict", arguments, __doc__)
    silence_libraries()
    predictor = load_model(options)
    place = Path(options.run_or_weights)
    check_options(options, predictor)
    if options.json or not predictor.classifies:
        print(f"read {one_line(predictor.note)}", file=sys.stderr)  # A table has the note below it.
    if options.sample is not None:
        write_png(cast(Path, options.out), in_rows(predictor.sample(options.sample)), place)
        return 0
    paths, images, is_complete = _read_all(predictor, options.images)
    _check_not_input(options, paths)
    pictures = None
    if options.rollout is not None:
        from train.predict.rollout import Pictures  # Late import: matplotlib takes 0.5 s.

        pictures = Pictures(options.rollout, paths, place, options.overwrite)
    results = predictor(images)
    if predictor.classifies:
        print_classes(predictor, paths, results, options.top_k, options.json)
    else:
        write_png(cast(Path, options.out), above(images / 255.0, results), place)
    if options.attention is not None:
        overlaid = np.asarray(jax.jit(cast(Callable, predictor.task.overlay))(predictor.state, images))
        gray = np.broadcast_to(images[..., :3] / 255.0, overlaid.shape)
        write_png(options.attention, above(gray, overlaid), place)
    if pictures is not None:
        pictures.write(predictor, paths, images, results, options.top_k)
        told = count_of(len(paths), "picture")
        print(one_line(f"wrote {told} as PNG and SVG into {options.rollout}"), file=sys.stderr)
    return 0 if is_complete or options.skip_corrupt else 1


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
        raise UserError(
            f"--sample needs a generative model, such as a run of train.aae, got {kind_of(predictor.config)}"
        )
    if predictor.classifies and options.out is not None:
        raise UserError(
            f"--out needs an autoencoder, such as a run of train.aae, got {kind_of(predictor.config)}. Leave it out"
        )
    if not predictor.classifies and options.json:
        raise UserError(f"--json needs a classifier, got {kind_of(predictor.config)}. Use --out images.png instead")
    if not predictor.classifies and options.out is None:
        raise UserError("--out must be given for an autoencoder. Add --out images.png")
    if options.attention is not None and predictor.task.overlay is None:
        raise UserError(
            f"--attention needs a model with attention, such as a run of train.vit, got {kind_of(predictor.config)}"
        )
    if options.rollout is not None and predictor.task.rollout is None:
        raise UserError(
            f"--rollout needs a ViT, such as a run of train.vit, got {kind_of(predictor.config)}. To see the pictures "
            "of this model, run python -m train.report RUN --pictures DIR"
        )
    if options.overwrite and options.rollout is None:
        raise UserError("--overwrite must be used with --rollout. Leave it out")
    if options.sample is not None and options.images:
        raise UserError(
            f"--sample does not use input images, got {options.images[0]}. Leave out the images or --sample"
        )
    count = len(predictor.label_names)
    if predictor.classifies and options.top_k is not None and not 1 <= options.top_k <= count:
        raise UserError(f"--top-k must be from 1 to {count}, the number of classes, got {options.top_k}")
    if options.sample is None and not options.images:
        raise UserError("images are missing. Add image files or folders after RUN_OR_WEIGHTS")


def _check_not_input(options: Options, paths: Sequence[Path]) -> None:
    """Raises UserError if a picture would replace one of the images that were read."""
    for flag, path in (("--out", options.out), ("--attention", options.attention)):
        if path is not None and path.exists() and any(path.samefile(image) for image in paths):
            raise UserError(f"{flag} must not be one of the images, got {path}. Choose another file")


if __name__ == "__main__":
    run_main(main)
