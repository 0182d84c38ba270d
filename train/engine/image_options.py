"""Translates between a run's options for its images and an `ImageSpec`, which weights files have."""

from dataclasses import replace

from configs.vit import Config
from train.data.crops import CENTRAL
from train.data.normalize import input_channels, mean_and_std, normalize_like
from train.data.open import has_one_size
from train.process.errors import as_user_error
from train.run.folder import ImageInfo
from w2jax.image_spec import ImageSpec


def run_spec(config: Config, info: ImageInfo) -> ImageSpec:
    """Returns how a run prepares images for evaluation. `info` is the run's images.json.

    Raises:
        UserError: the config, which may come from someone else, has a wrong value.
    """
    (height, width, channels), data = info.image_shape, config.data
    resize = (height, width) if data.crop is None else round(min(height, width) / CENTRAL)
    mean, std = mean_and_std(config.normalize)
    repeats = input_channels(config.normalize, channels) // len(mean)
    names = tuple(info.label_names)
    with as_user_error({"resize": "--data.resize", "interpolation": "--data.interpolation"}):
        return ImageSpec(
            (height, width),
            data.resize or resize,
            data.interpolation or "bilinear",
            mean * repeats,
            std * repeats,
            names,
        )


def with_spec(config: Config, spec: ImageSpec) -> Config:
    """Returns a config that prepares images like `spec`, except where its options say otherwise.

    Without `--data.image-size`, images of different sizes get the size of `spec`. Images of one size are not resized.
    """
    data, normalize = config.data, config.normalize
    size = data.image_size or (None if has_one_size(data) else spec.image_size)
    if size is not None:
        resize, interpolation = data.resize or _scaled(spec, size), data.interpolation or spec.interpolation
        data = replace(data, image_size=size, resize=resize, interpolation=interpolation)
    return replace(config, data=data, normalize=normalize_like(spec) if normalize == "auto" else normalize)


def describe_images(config: Config) -> str:
    """Describes how a config prepares images, for a user who passed `--init-from`."""
    data, normalize = config.data, config.normalize
    if normalize == "auto":
        text = "pixels in [-1, 1] (--normalize)"
    elif isinstance(normalize, str):
        text = f"normalization {normalize}"
    else:
        mean, std = mean_and_std(normalize)
        text = f"normalization by mean {' '.join(map(str, mean))}, deviation {' '.join(map(str, std))}"
    if data.resize is None or data.image_size is None:
        return text
    height, width = data.image_size
    resized = f"shorter side {data.resize}" if isinstance(data.resize, int) else "{}×{}".format(*data.resize)
    return f"{text}; images resized to {resized} ({data.interpolation or 'bilinear'}), cut to {height}×{width}"


def _scaled(spec: ImageSpec, size: tuple[int, int]) -> int | tuple[int, int]:
    """Returns the `resize` of `spec` for images of another size. For another shape it is a pair, which stretches."""
    factors = [new / old for new, old in zip(size, spec.image_size, strict=True)]
    if isinstance(spec.resize, int) and factors[0] == factors[1]:
        return round(spec.resize * factors[0])
    if isinstance(spec.resize, int):
        margin = spec.resize / min(spec.image_size)
        return round(size[0] * margin), round(size[1] * margin)
    return round(spec.resize[0] * factors[0]), round(spec.resize[1] * factors[1])
