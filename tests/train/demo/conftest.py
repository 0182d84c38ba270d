"""Runs that are trained in seconds."""

import dataclasses
import importlib

import pytest
from runs import with_run

from configs.base import Mesh
from train.engine.loop import fit


def trained(task, folder, **options):
    tiny = importlib.import_module(f"configs.{task}").PRESETS["tiny"].config
    config = dataclasses.replace(with_run(tiny, folder, **options), mesh=Mesh(1, 1, 1))
    fit(config, importlib.import_module(f"train.{task}").make_task)
    return folder


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A run of an LSTM that reads nine of ten digits correctly."""
    return trained("lstm", tmp_path_factory.mktemp("runs") / "lstm")


@pytest.fixture(scope="session")
def vit_run(tmp_path_factory):
    return trained("vit", tmp_path_factory.mktemp("runs") / "vit", steps=3, eval_every=3)


@pytest.fixture(scope="session")
def aae_run(tmp_path_factory):
    return trained("aae", tmp_path_factory.mktemp("runs") / "aae", steps=5, eval_every=5)
