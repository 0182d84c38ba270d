"""The options that name a trained model, common to train.predict and train.demo."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Any, Literal

import tyro

from train.data.normalize import mean_and_std
from train.predict.loading import load
from train.predict.predictor import Predictor
from train.process.errors import UserError, as_user_error
from train.run.choose import LAST
from w2jax.blocks import Activation
from w2jax.image_spec import ImageSpec

# Fields of a ViT that weights do not always determine, as in w2jax.convert.
_FIELDS = ("num_heads", "activation", "norm_eps", "pool")


@dataclass(frozen=True)
class ModelOptions:
    """A trained model, its checkpoint, and what the files of the weights may leave open."""

    run_or_weights: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN_OR_WEIGHTS")]
    """Run folder, such as runs/vit-sample. Or the weights of a ViT: a file or folder from timm,
    Hugging Face, torchvision, Google or w2jax, or the name of a model on the Hugging Face hub."""
    _: KW_ONLY
    checkpoint: Annotated[str, tyro.conf.arg(metavar="last|best|STEP")] = LAST
    """Checkpoint of a run: the last one, the one with the best test metric, or the one of a step."""
    normalize: Literal["half", "imagenet", "clip", "none"] | None = None
    """Normalization, in place of that in the files of the weights. Pass --image-size too."""
    image_size: Annotated[tuple[int, int] | None, tyro.conf.arg(metavar="H W")] = None
    """Size in pixels to which images are resized and cut, in place of that in the files of the weights."""
    num_heads: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Number of attention heads, if the files of the weights do not say it."""
    activation: Activation | None = None
    """Activation of the MLPs, if the files of the weights do not say it.
    Default: that of the library from which the weights come."""
    norm_eps: Annotated[float | None, tyro.conf.arg(metavar="E")] = None
    """Epsilon of every LayerNorm, if the files of the weights do not say it.
    Default: that of the library from which the weights come."""
    pool: Literal["cls", "gap", "map"] | None = None
    """cls: class token; gap: mean of the patches; map: attention pooling. Default: read from the weights."""


def load_model(options: ModelOptions) -> Predictor:
    """Loads the model that the options name.

    Raises:
        UserError: as in `load`, or the options do not match each other.
    """
    return load(options.run_or_weights, options.checkpoint, _spec(options), **given(options, _FIELDS))


def given(options: ModelOptions, names: Sequence[str] = ("normalize", "image_size", *_FIELDS)) -> dict[str, Any]:
    """Returns the options that the user passed, of those that only weights need."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _spec(options: ModelOptions) -> ImageSpec | None:
    """Returns the description of the images from the options; None if the user passed no such option."""
    if options.normalize is None and options.image_size is None:
        return None
    if options.normalize is None or options.image_size is None:
        given, missing = "--normalize", "--image-size"
        if options.normalize is None:
            given, missing = missing, given
        raise UserError(f"--normalize and --image-size must be given together, got only {given}. Add {missing}")
    mean, std = mean_and_std(options.normalize)
    repeats = 3 // len(mean)
    height, width = options.image_size
    resize = height if height == width else options.image_size
    with as_user_error({"image_size": "--image-size", "resize": "--image-size"}):
        return ImageSpec(options.image_size, resize, mean=mean * repeats, std=std * repeats, stretch=False)
