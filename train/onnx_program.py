"""A trained model and its weights as an ONNX file, made by jax2onnx and checked with ONNX Runtime.

The file has one input, `images`: uint8 [B, h, w, C] with any B above 0, as the exported StableHLO program. Its output
is `probabilities` [B, V], or `reconstructions` [B, h, w, C] of an autoencoder. The file's metadata describe both.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax import export
from jax.extend.core import Literal

from train.config.tasks import task_of
from train.data.crops import CENTRAL
from train.predict import Predictor, make_predictor
from train.process.errors import UserError
from train.run.folder import ImageInfo
from w2jax.module import field_names
from w2jax.serialize import with_fields
from w2jax.text import one_line, shorten

BOUND = 1e-4
"""Largest difference between an output of the file and the model's, as a fraction of max(1, largest output)."""
INPUT = "images"

_BATCHES = 1, 3  # numbers of images with which a file is checked
_CALLS = ("checkpoint", "closed_call", "custom_jvp_call", "custom_vjp_call", "jit", "pjit", "remat")
_CHANNELS = {1: "gray", 3: "red, green, blue", 4: "red, green, blue, alpha"}
_INSTALL = 'Run: pip install -e ".[onnx]"'


class OnnxProgram(NamedTuple):
    """An ONNX file that was checked."""

    content: bytes
    output: str
    """The name of the output."""
    metadata: dict[str, str]
    difference: float
    """Largest difference from the model's outputs, as `BOUND`."""


def onnx_program(predictor: Predictor) -> OnnxProgram:
    """Converts a model and its weights to ONNX, in float32, and compares the outputs with the model's.

    Raises:
        UserError: jax2onnx or onnxruntime is not installed, jax2onnx cannot convert the model, ONNX Runtime cannot run
            the file, or its outputs differ from the model's by more than `BOUND`.
    """
    check_installed()
    predictor = _in_float32(predictor)
    output = "probabilities" if predictor.classifies else "reconstructions"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = _convert(predictor, output)
            metadata = _metadata(predictor, output, model.opset_imports[""])
            content = _serialize(model, metadata)
    except UserError:
        raise
    except Exception as error:  # For what it does not know, jax2onnx may raise any exception.
        raise UserError(_failure(f"jax2onnx cannot convert this model: {_reason(error)}")) from error
    return OnnxProgram(content, output, metadata, check(content, predictor))


def check_installed() -> None:
    """Raises UserError if a package is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import jax2onnx  # noqa: F401
            import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--format onnx needs the packages jax2onnx and onnxruntime ({one_line(str(error))}). {_INSTALL}"
        ) from error


def check(content: bytes, predictor: Predictor) -> float:
    """Runs an ONNX file on a few images; returns the largest difference from the predictor's outputs, as `BOUND`.

    Raises:
        UserError: ONNX Runtime cannot run the file, or the difference is above `BOUND`.
    """
    rng, differences = np.random.default_rng(0), []
    for count in _BATCHES:
        contrast = np.linspace(1, 0.2, count).reshape(-1, 1, 1, 1)
        images = (rng.uniform(0, 256, (count, *predictor.image_shape)) * contrast).astype(np.uint8)
        expected = predictor(images)
        try:
            found = _run(content, images)
        except Exception as error:  # ONNX Runtime's exceptions have no common class.
            raise UserError(_failure(f"ONNX Runtime cannot run the file of jax2onnx: {_reason(error)}")) from error
        if found.shape != expected.shape:
            raise UserError(
                _failure(f"an output of the ONNX file must have the shape {expected.shape}, got {found.shape}")
            )
        difference = float(np.abs(found - expected).max()) / max(1.0, float(np.abs(expected).max()))
        if not difference <= BOUND:  # also NaN
            raise UserError(
                _failure(
                    f"the outputs of the ONNX file must equal the model's within {BOUND:g}, got a difference of "
                    f"{difference:.2g}"
                )
            )
        differences.append(difference)
    return max(differences)


def _run(content: bytes, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # Errors are raised too.
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {INPUT: images})[0])


def _in_float32(predictor: Predictor) -> Predictor:
    """Returns a predictor that computes in float32, because ONNX Runtime has no products of bfloat16 on CPU."""
    config, images = predictor.config, ImageInfo(predictor.image_shape, predictor.label_names)
    model = _with_float32(config.model)
    if model == config.model:
        return predictor
    converted = make_predictor(replace(config, model=model), images, predictor.state.eval_variables, predictor.note)
    return replace(converted, spec=predictor.spec)


def _with_float32(module: nn.Module) -> nn.Module:
    values = {name: getattr(module, name) for name in field_names(module)}
    changed: dict[str, Any] = {
        name: _with_float32(value) for name, value in values.items() if isinstance(value, nn.Module)
    }
    return with_fields(module, changed | ({"dtype": "float32"} if "dtype" in values else {}))


def _convert(predictor: Predictor, output: str) -> Any:
    """Returns the model as an `onnx_ir.Model`, without metadata."""
    import jax2onnx
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    (size,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((size, *predictor.image_shape), np.uint8)
    # jax2onnx would replace functions of jax.numpy and Flax while it traces the model, and its replacements do not
    # support all of their arguments. So it only gets the traced operations. disable_jit unrolls scans, whose form
    # differs between versions of JAX.
    with jax.disable_jit():
        traced = jax.make_jaxpr(lambda images: predictor.apply(predictor.state, images))(images)
    converted = jax2onnx.to_onnx(
        lambda images: _evaluate(traced, [images])[0],
        [images],
        model_name=type(predictor.config.model).__name__,
        input_names=[INPUT],
        output_names=[output],
    )
    model = onnx_ir.from_proto(converted)
    RemoveUnusedNodesPass()(model)  # Otherwise ONNX Runtime warns of unused constants.
    return model


def _evaluate(closed: Any, arguments: Sequence[Any]) -> list[Any]:
    """Evaluates a jaxpr. Functions that it calls, such as those with their own gradient, become part of it."""
    jaxpr = getattr(closed, "jaxpr", closed)
    names = [*jaxpr.constvars, *jaxpr.invars]
    values = dict(zip(names, [*getattr(closed, "consts", ()), *arguments], strict=True))
    for equation in jaxpr.eqns:
        inputs = [x.val if isinstance(x, Literal) else values[x] for x in equation.invars]
        primitive, params = equation.primitive, equation.params
        if primitive.name in _CALLS:
            outputs = _evaluate(params["call_jaxpr"] if "call_jaxpr" in params else params["jaxpr"], inputs)
        elif primitive.name == "stack":  # Only newer versions of jax2onnx know it.
            parts = [jax.lax.expand_dims(x, [params["axis"]]) for x in inputs]
            outputs = [jax.lax.concatenate(parts, params["axis"])]
        else:
            outputs = primitive.bind(*inputs, **params)
            outputs = outputs if primitive.multiple_results else [outputs]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [x.val if isinstance(x, Literal) else values[x] for x in jaxpr.outvars]


def _serialize(model: Any, metadata: dict[str, str]) -> bytes:
    import onnx_ir

    # `w2jax.convert.saving` recognizes our files by the producer.
    model.producer_name, model.producer_version = "w2jax", metadata["w2jax_version"]
    model.metadata_props.update(metadata)
    return onnx_ir.to_proto(model).SerializeToString()


def _metadata(predictor: Predictor, output: str, opset: int) -> dict[str, str]:
    """Returns what the file says about itself."""
    height, width, channels = predictor.image_shape
    shape = f"[batch, {height}, {width}, {channels}]"
    if predictor.classifies:
        names = {"class_names": json.dumps(predictor.label_names, ensure_ascii=False)}
        result = f"float32 [batch, {len(predictor.label_names)}], the probability of each class, as in class_names"
    else:
        names, result = {}, f"float32 {shape}, reconstructed images, from 0 (black) to 1 (white)"
    return {
        "w2jax_version": version("w2jax"),
        "opset": str(opset),
        "task": task_of(predictor.config) or "",
        **names,
        f"input_{INPUT}": f"uint8 {shape}, pixels from 0 to 255; axes: image, row from the top, column, channel "
        f"({_CHANNELS.get(channels, 'any')})",
        "preprocessing": f"{_resizing(predictor)}. The graph itself normalizes the pixels: do not scale them",
        f"output_{output}": result,
        "weights": predictor.note,
    }


def _resizing(predictor: Predictor) -> str:
    """Describes how `Predictor.read` changes the size of images."""
    (height, width, _), data, spec = predictor.image_shape, predictor.config.data, predictor.spec
    if spec is None and data.crop is None:
        return f"images of another size are stretched to {height}×{width} ({data.interpolation or 'bilinear'})"
    if spec is None:
        part = f"the central part with {CENTRAL} of the side is cut out and resized to {height}×{width}"
        return f"{part} ({data.interpolation or 'bilinear'})"
    resized = f"shorter side {spec.resize}" if isinstance(spec.resize, int) else "{}×{}".format(*spec.resize)
    cut = f"the center of {spec.image_size[0]}×{spec.image_size[1]} is cut out"
    return f"images are resized to {resized} ({spec.interpolation}), and {cut}"


def _reason(error: Exception) -> str:
    return shorten(one_line(f"{type(error).__name__}: {error}".splitlines()[0]), 300)


def _failure(reason: str) -> str:
    """Adds to a reason the versions to report, and what to do."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax2onnx", "onnxruntime", "jax"))
    return f"{reason} ({packages}). No file was written. For StableHLO, omit --format and set --out to a folder"
