"""The images that pretrained weights were trained on, as timm and Hugging Face describe them in JSON files."""

import math
from collections.abc import Mapping
from typing import Any, get_args

from w2jax.convert.imagenet import imagenet_names, names_of_tag
from w2jax.convert.vit_configs import class_names, image_sides, model_args, timm_pretrained
from w2jax.image_spec import CLIP, HALF, IMAGENET, MAX_SIDE, RESAMPLING, ImageSpec, Interpolation
from w2jax.text import shorten

PREPROCESSOR = "preprocessor_config.json"
"""The name of Hugging Face's file beside the weights."""

_CLIP = {"image_mean": CLIP[0], "image_std": CLIP[1]}
_STRETCHED = {"size": {"height": 224, "width": 224}, "image_mean": HALF[0], "image_std": HALF[1]}
_CROPPED = {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": 224, "resample": 3} | _CLIP

_PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": _STRETCHED | {"resample": 2},
    "DeiT": _STRETCHED | {"size": 256, "do_center_crop": True, "crop_size": 224, "resample": 3},
    "Bit": _CROPPED,
    "CLIP": _CROPPED,
    "Siglip": _STRETCHED | {"resample": 3},
}
"""The default values of Hugging Face's image processors."""

_OF_MODELS = {"deit": "DeiT", "dinov2": "Bit", "dinov2_with_registers": "Bit"}
_OF_MODELS |= {"clip": "CLIP", "clip_vision_model": "CLIP", "siglip": "Siglip", "siglip_vision_model": "Siglip"}
_OF_MODELS |= dict.fromkeys(("vit", "vit_mae", "vit_msn", "ijepa"), "ViT")
"""The processor of a "model_type", for files that do not name it."""

_RESAMPLE = {number: name for name, number in RESAMPLING.items()}


def image_spec(
    config: Mapping[str, Any] | None, preprocessor: Mapping[str, Any] | None, num_classes: int
) -> ImageSpec | None:
    """Read how images must be prepared for a model, with the names of its classes.

    Args:
        config: content of config.json.
        preprocessor: content of Hugging Face's preprocessor_config.json.
        num_classes: the model's number of classes. Another number of names is ignored.

    Returns:
        The description; None if the files do not have one.

    Raises:
        ValueError: a value is not understood or cannot be expressed.
    """
    if config is None:
        return None
    if "model_type" in config:
        fields = None if preprocessor is None else _huggingface(preprocessor, config["model_type"])
    elif "model_cfg" in config:
        fields = _open_clip(config)
    else:
        fields = _timm(config)
    return None if fields is None else _spec(fields, config_names(config, num_classes))


def config_names(config: Mapping[str, Any] | None, num_classes: int) -> tuple[str, ...] | None:
    """Return the names of the classes that a config.json has or determines; None if it has no names."""
    names = class_names(config, num_classes)
    if names is not None:
        return tuple(names)
    if config is None or "model_type" in config:
        return None
    return names_of_tag(config, timm_pretrained(config), num_classes)


def exported_spec(images: Mapping[str, Any]) -> ImageSpec:
    """Return how `train.export` prepares images for a ViT, from its images.json: stretched, with values in [0, 1].

    Raises:
        ValueError: the file is broken.
    """
    height, width, channels = _sides("image_shape", images.get("image_shape"), 3)
    names = images.get("label_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"label_names must be a list of names, got {shorten(repr(names))}")
    size, zeros, ones = (height, width), (0.0,) * channels, (1.0,) * channels
    return ImageSpec(size, size, "bilinear", zeros, ones, tuple(names) or None)


def assumed_spec(family: str, image_size: tuple[int, int] | None, num_classes: int) -> ImageSpec | None:
    """Return how a library whose files do not describe images prepares them for its published models.

    torchvision resizes the shorter side to 256 for images of 224 pixels, and to the size of the image for larger ones.
    Google stretches the image, without antialiasing. Models with as many classes as ImageNet have its names. None:
    another library, or the size is unknown.
    """
    if image_size is None or family not in ("torchvision", "google"):
        return None
    names = imagenet_names(num_classes)
    if family == "torchvision":
        short, interpolation = (256, "bilinear") if image_size == (224, 224) else (min(image_size), "bicubic")
        return ImageSpec(image_size, short, interpolation, *IMAGENET, names, upright=False)
    return ImageSpec(image_size, image_size, "bilinear", label_names=names, upright=False)


def timm_images(spec: ImageSpec) -> dict[str, Any] | None:
    """Return how images are prepared in the terms of timm's pretrained_cfg; None if timm cannot prepare them so."""
    resize = (spec.resize, spec.resize) if isinstance(spec.resize, int) else spec.resize
    # timm rounds size / crop_pct down, so half a pixel more gives the same size.
    fractions = [
        size / (side + extra) for extra in (0, 0.5) for size, side in zip(spec.image_size, resize, strict=True)
    ]
    fits = [f for f in fractions if tuple(math.floor(size / f) for size in spec.image_size) == resize]
    if not fits:
        return None
    return {
        "input_size": [spec.channels, *spec.image_size],
        "interpolation": spec.interpolation,
        "crop_pct": fits[0],
        "crop_mode": "squash" if isinstance(spec.resize, tuple) and spec.stretch else "center",
        "mean": list(spec.mean),
        "std": list(spec.std),
    }


def huggingface_images(spec: ImageSpec) -> dict[str, Any] | None:
    """Return the content of preprocessor_config.json; None if no processor of Hugging Face prepares images so."""
    height, width = spec.image_size
    if spec.resize == spec.image_size and spec.stretch:
        kind, crop = "ViT", {}
    elif isinstance(spec.resize, int) or spec.stretch:
        kind, crop = "Bit", {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
    else:
        return None
    if isinstance(spec.resize, int):
        size = {"shortest_edge": spec.resize}
    else:
        size = {"height": spec.resize[0], "width": spec.resize[1]}
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": RESAMPLING[spec.interpolation],
        **crop,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }


def _spec(fields: dict[str, Any], names: tuple[str, ...] | None) -> ImageSpec:
    try:
        return ImageSpec(**fields, label_names=names)
    except ValueError as error:
        raise ValueError(f"{error}, in the files that describe the images") from error


def _timm(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return fields of `ImageSpec` from timm's config.json, as `timm.data.create_transform` understands it.

    Values for tests with other sizes (test_input_size, test_crop_pct) are ignored, as by default in timm.
    """
    stated = timm_pretrained(config)
    if "input_size" not in stated:
        return None
    channels, *sides = _sides("input_size", stated["input_size"], 3)
    size = (stated.get("fixed_input_size") and image_sides(None, config)) or tuple(sides)
    (channels,) = _sides("in_chans", [model_args(config).get("in_chans", channels)], 1)
    crop_pct = stated.get("crop_pct") or 0.875
    if type(crop_pct) not in (int, float) or not 0.1 <= crop_pct <= 10:
        raise ValueError(f"crop_pct must be a number from 0.1 to 10, got {shorten(repr(crop_pct))}")
    mode = stated.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise ValueError(f"crop_mode must be center or squash, got {shorten(repr(mode))}")
    height, width = (math.floor(side / crop_pct) for side in size)
    fields: dict[str, Any] = {"resize": (height, width), "stretch": mode == "squash"}
    if mode == "center" and height == width:
        fields = {"resize": height}
    for name, default in zip(("mean", "std"), IMAGENET, strict=True):
        values = _numbers(name, stated.get(name) or default)
        fields[name] = values * channels if len(values) == 1 else values
        if len(fields[name]) != channels:
            raise ValueError(f"{name} must have {channels} numbers, one for each channel, got {len(fields[name])}")
    interpolation = stated.get("interpolation") or "bicubic"
    if interpolation not in get_args(Interpolation):
        raise ValueError(
            f"interpolation must be {', '.join(get_args(Interpolation))}, got {shorten(repr(interpolation))}"
        )
    return fields | {"image_size": size, "interpolation": interpolation, "upright": False}


def _open_clip(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of `ImageSpec` from open_clip_config.json, as `open_clip.image_transform` understands it."""
    stated = config.get("preprocess_cfg") or {}
    if not isinstance(stated, dict):
        raise ValueError(f"preprocess_cfg in open_clip_config.json must be an object, got {shorten(repr(stated))}")
    mode, interpolation = stated.get("resize_mode") or "shortest", stated.get("interpolation") or "bicubic"
    if mode not in ("shortest", "squash"):
        raise ValueError(f"resize_mode must be shortest or squash, got {shorten(repr(mode))}")
    if interpolation not in ("bicubic", "bilinear", "random"):
        raise ValueError(f"interpolation must be bicubic, bilinear or random, got {shorten(repr(interpolation))}")
    height, width = image_sides(None, config) or (224, 224)
    fields: dict[str, Any] = {"image_size": (height, width), "resize": (height, width), "stretch": mode == "squash"}
    if mode == "shortest" and height == width:
        fields["resize"] = height
    # For images that are not square, the library passes on no interpolation, which is then bicubic.
    is_bilinear = interpolation == "bilinear" and (mode == "squash" or height == width)
    for name, default in zip(("mean", "std"), CLIP, strict=True):
        values = stated.get(name) or default
        fields[name] = _numbers(name, values if isinstance(values, list | tuple) else (values,) * 3)
    return fields | {"interpolation": "bilinear" if is_bilinear else "bicubic", "upright": False}


def _huggingface(stated: Mapping[str, Any], model_type: Any) -> dict[str, Any]:
    """Return fields of `ImageSpec` from Hugging Face's preprocessor_config.json."""
    kind = stated.get("image_processor_type", stated.get("feature_extractor_type"))
    if kind is None:
        kind = _OF_MODELS.get(model_type) if isinstance(model_type, str) else None
    else:
        for ending in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
            kind = str(kind).removesuffix(ending)
    if kind not in _PROCESSORS:
        raise ValueError(f"image_processor_type must begin with {' or '.join(_PROCESSORS)}, got {shorten(repr(kind))}")
    values = _PROCESSORS[kind] | {name: value for name, value in stated.items() if value is not None}
    for name, wanted in (("do_resize", True), ("do_pad", False)):
        if values.get(name, wanted) is not wanted:
            raise ValueError(f"{name} must be {str(wanted).lower()}, got {shorten(repr(values[name]))}")
    resample = values["resample"]
    if type(resample) is not int or resample not in _RESAMPLE:
        raise ValueError(f"resample must be {', '.join(map(str, _RESAMPLE))}, got {shorten(repr(resample))}")
    resize = _size("size", values["size"], one_is_shorter=kind in ("CLIP", "Bit", "Siglip"))
    size = _size("crop_size", values.get("crop_size")) if values.get("do_center_crop", False) else resize
    if isinstance(size, int):
        raise ValueError(
            f"size must have height and width if do_center_crop is false, got {shorten(repr(values['size']))}"
        )
    # The library computes (value · factor - mean) / std for values up to 255, ImageSpec (value / 255 - mean) / std.
    factor = values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1
    if type(factor) not in (int, float) or not 1e-6 < factor < 1e6:
        raise ValueError(f"rescale_factor must be a positive number, got {shorten(repr(factor))}")
    most = 1.0 if math.isclose(factor, 1 / 255, rel_tol=1e-5) else 255 * factor
    mean, std = _numbers("image_mean", values["image_mean"]), _numbers("image_std", values["image_std"])
    if not values.get("do_normalize", True):
        mean, std = (0.0,) * len(mean), (1.0,) * len(std)
    return {
        "image_size": size,
        "resize": resize,
        "interpolation": _RESAMPLE[resample],
        "mean": tuple(value / most for value in mean),
        "std": tuple(value / most for value in std),
        "crop_offset": "floor",
    }


def _size(name: str, size: Any, one_is_shorter: bool = False) -> int | tuple[int, int]:
    """Return the length of the shorter side, or (height, width). One number means a square, or the shorter side."""
    if isinstance(size, dict) and size.keys() == {"shortest_edge"}:
        size, one_is_shorter = size["shortest_edge"], True
    elif isinstance(size, dict) and size.keys() == {"height", "width"}:
        size = [size["height"], size["width"]]
    elif isinstance(size, dict):
        raise ValueError(f"{name} must have height and width, or shortest_edge, got {shorten(repr(size))}")
    if isinstance(size, int):
        return _sides(name, [size], 1)[0] if one_is_shorter else _sides(name, [size, size], 2)
    return _sides(name, size, 2)


def _sides(name: str, sides: Any, count: int) -> Any:
    valid = isinstance(sides, list | tuple) and len(sides) == count
    if not valid or not all(type(side) is int and 0 < side <= MAX_SIDE for side in sides):
        raise ValueError(f"{name} must be {count} integers from 1 to {MAX_SIDE}, got {shorten(repr(sides))}")
    return tuple(sides)


def _numbers(name: str, numbers: Any) -> tuple[float, ...]:
    if not isinstance(numbers, list | tuple) or not all(
        type(number) in (int, float) and abs(number) < 1e30 for number in numbers
    ):
        raise ValueError(f"{name} must be a list of numbers, got {shorten(repr(numbers))}")
    return tuple(map(float, numbers))
