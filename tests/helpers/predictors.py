"""Predictors of small untrained models of every task, and a run folder of one step."""

import dataclasses
import importlib
from pathlib import Path

import jax
import numpy as np
from tasks import preset

from configs.base import Mesh
from train.engine.loop import fit
from train.predict import make_predictor
from train.run.folder import ImageInfo
from w2jax import ViT
from w2jax.aae import AAE, AAEDecoder, AAEDiscriminator, AAEEncoder

VIT = ViT(10, 7, 16, 2, 2, 16)
SCANNED = VIT.clone(pool="map", num_registers=2, embed_norm=True, scan_layers=True)
CATEGORIES = AAE(
    AAEEncoder(3, hidden_sizes=(16,), categories=10, normalize_categories=True),
    AAEDecoder((28, 28, 1), hidden_sizes=(16,), batch_norm=(0,), activation="sigmoid"),
    AAEDiscriminator(hidden_sizes=(8,)),
    AAEDiscriminator(hidden_sizes=(8,)),
)
GRAY, RGB = (28, 28, 1), (28, 28, 3)
CASES = {  # preset, another model than the preset's or None, shape of the images
    "vit": (("vit", "tiny"), VIT, GRAY),
    "vit_rgb": (("vit", "tiny"), VIT, RGB),
    "vit_scanned": (("vit", "tiny"), SCANNED, GRAY),
    "vit_bfloat16": (("vit", "tiny"), VIT.clone(dtype="bfloat16"), GRAY),
    "lstm": (("lstm", "tiny"), None, GRAY),
    "mha": (("mha", "tiny"), None, GRAY),
    "aae": (("aae", "tiny"), None, (32, 32, 1)),
    "aae_semi": (("aae", "semi_100"), CATEGORIES, GRAY),
    "aae_clusters": (("aae", "reduction"), CATEGORIES.clone(cluster_heads=True, decoder=AAEDecoder(GRAY)), GRAY),
}


def untrained(case):
    """Returns the predictor of a model with random weights."""
    (task, name), model, shape = CASES[case]
    config = preset(task, name)
    config = config if model is None else dataclasses.replace(config, model=model)
    example = np.zeros((1, *shape) if task in ("vit", "aae") else (1, shape[0], shape[1] * shape[2]), np.float32)
    shapes = jax.eval_shape(config.model.init, {"params": jax.random.key(0), "sample": jax.random.key(0)}, example)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), shapes)
    if "batch_stats" in shapes:
        variables["batch_stats"] = jax.tree.map(
            lambda x: rng.uniform(1, 2, x.shape).astype(x.dtype), shapes["batch_stats"]
        )
    return make_predictor(config, ImageInfo(shape, list("0123456789")), variables, "random ones")


def one_step_run(folder):
    """Trains for one step and returns the run folder. The model cannot be expressed in timm."""
    tiny = preset("vit", "tiny")
    config = dataclasses.replace(
        tiny,
        model=SCANNED.clone(depth=1, embed_dim=8),
        data=dataclasses.replace(tiny.data, train_split="train[:20]", test_split="test[:10]"),
        run=dataclasses.replace(tiny.run, steps=1, batch_size=10, dir=str(folder)),
        mesh=Mesh(1, 1, 1),
    )
    fit(config, importlib.import_module("train.vit").make_task)
    return Path(config.run.dir)
