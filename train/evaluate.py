"""Evaluates a checkpoint of a run again, for its report."""

import json
import math
from dataclasses import replace
from pathlib import Path

import jax

from configs.base import Distributed, Mesh
from train.config.checks import batch_unit
from train.config.tasks import task_maker, task_of
from train.engine.evaluator import Evaluator
from train.engine.setup import set_up
from train.predict import run_predictor
from train.process.setup import silence_libraries
from train.report.mistakes import write_mistakes
from train.report.page import Evaluated
from train.report.pictures import write_pictures
from train.run.atomic import write_atomic
from train.run.files import IMAGES
from train.run.folder import ImageInfo, check_data


def evaluate(run_dir: Path, checkpoint: str, out: Path, split: str | None = None) -> Evaluated:
    """Evaluates a checkpoint on the devices of this process. Writes its mistakes and pictures into the folder `out`.

    Args:
        run_dir: the run folder. Nothing in it changes.
        checkpoint: "last", "best" (by the test metric that ranks runs) or a step.
        out: an existing folder.
        split: the split of the dataset, such as "test". None: the test split of the run.

    Raises:
        UserError: it is not a run folder, it has no such checkpoint, or its dataset is missing or changed.
    """
    silence_libraries()
    predictor = run_predictor(run_dir, checkpoint)
    config = predictor.config
    # The run may have been trained on another number of devices.
    size = math.lcm(config.run.batch_size, batch_unit(config, jax.device_count()))
    # The run may have been moved. Its folder shows that it has a checkpoint, so that no initial weights are read.
    run = replace(config.run, dir=str(run_dir), epochs=None, batch_size=size, steps_per_call=1)
    run = replace(run, tensorboard=False, wandb=None)
    data = replace(config.data, test_split=split or config.data.test_split)
    config = replace(config, data=data, run=run, mesh=Mesh(), distributed=Distributed())
    setup, _ = set_up(config, task_maker(str(task_of(config))))
    test = setup.test_source
    images = ImageInfo(test.image_shape, list(test.label_names))
    check_data(run_dir, images, {"test": test.fingerprint} if split is None else {})
    evaluator, state = Evaluator(setup), jax.device_put(predictor.state, setup.program.replicated)
    metrics, predictions = evaluator.evaluate(state)
    metrics |= evaluator.final_metrics(state)
    write_atomic(out / IMAGES, json.dumps(images._asdict()))
    if predictions is not None:
        write_mistakes(out, predictions, test)
    write_pictures(out, evaluator.figures(state), test.label_names)
    return Evaluated(predictor.note + ("" if split is None else f", on split {split}"), metrics, out)
