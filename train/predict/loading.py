"""Loads predictors from run folders and from weights of other libraries."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from train.config.tasks import task_config_type, task_names
from train.engine.init_from import as_weights_error, weights_config
from train.predict.predictor import Predictor, make_predictor, make_task
from train.process.errors import UserError, as_user_error
from train.run.choose import LAST
from train.run.files import read_config_tree
from train.run.folder import ImageInfo, read_config, read_image_info
from train.run.record import read_task_info
from train.run.weights import check_layers, is_run_folder, read_variables
from train.task import array_differences
from w2jax.convert.files import has_weights
from w2jax.convert.hub import is_name
from w2jax.image_spec import ImageSpec
from w2jax.pretrained import load_pretrained
from w2jax.text import shorten


def load(run_or_weights: str | Path, checkpoint: str = LAST, spec: ImageSpec | None = None, **fields: Any) -> Predictor:
    """Loads the model of a run, or a ViT that `w2jax.convert.load` reads.

    Args:
        run_or_weights: a run folder, a file or folder with weights, or the name of a model on the Hugging Face hub.
        checkpoint: the checkpoint of a run: "last", "best" (by the test metric that ranks runs) or a step.
        spec: how images must be prepared for the weights. None: as the files beside them say.
        **fields: fields of the ViT that the weights do not determine, as in `w2jax.convert.load`, such as num_heads.

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
        return _load_weights(str(run_or_weights), spec, fields)
    check_for_run(path, [*(["normalize", "image_size"] if spec else []), *fields])
    return run_predictor(path, checkpoint)


def check_for_run(path: Path, given: Sequence[str]) -> None:
    """Raises UserError if an option is `given` that only weights need, and `path` is a run."""
    if given:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(f"{options} must be left out for a run, got {path}. They are for weights")


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


def _load_weights(name_or_path: str, spec: ImageSpec | None, fields: Mapping[str, Any]) -> Predictor:
    config, spec, note = weights_config(name_or_path, spec, fields)
    path = str(config.init_from)  # with the commit of a model on the hub
    height, width = spec.image_size
    names = spec.label_names or tuple(f"class {k}" for k in range(config.model.num_classes))
    images = ImageInfo((height, width, spec.channels), list(names))
    with as_weights_error():
        variables = load_pretrained(path, spec, **fields).variables
    params = {"params": jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), variables["params"])}
    with as_user_error():
        predictor = replace(make_predictor(config, images, params, note), spec=spec)
        expected = {"params": jax.eval_shape(predictor.task.init).params}
    if (differences := array_differences(params, expected)) is not None:
        raise UserError(f"{path} must fit images of shape [{height}, {width}, {spec.channels}], but {differences}")
    return predictor


def _check_shapes(config: Any, images: ImageInfo, shapes: Mapping[str, Any]) -> None:
    """Raises ValueError if variables of these shapes are not those that the config's task trains."""
    check_layers(config.model, shapes)
    try:
        state = jax.eval_shape(make_task(config, images).init)
    except Exception as error:  # For wrong sizes in a file, the model's code may raise any exception.
        reason = shorten((str(error) or type(error).__name__).splitlines()[0])
        raise ValueError(f"config.json and images.json must describe a model that can be built: {reason}") from error
    expected = {"params": state.params, "batch_stats": state.batch_stats}
    if (differences := array_differences(shapes, expected)) is not None:
        raise ValueError(f"the parameters must be those of the model in config.json, but {differences}")
