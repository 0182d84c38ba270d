"""python -m train.vit [PRESET]: a Vision Transformer that classifies images."""

from dataclasses import replace
from functools import partial

import jax.numpy as jnp
from einops import rearrange, reduce, repeat

from configs.vit import PRESETS, Config
from train.classify import classification_task
from train.config.cli import parse, run_main
from train.data import Source
from train.engine.init_from import read_initial_params, resolve
from train.engine.main import train_program
from train.task import Grid, Task

PIXELS = 2**20  # of a picture of attention; of large images fewer are drawn, as the report contains them all


def make_task(config: Config, source: Source) -> Task:
    """The task of classifying images like those of `source`."""
    model = config.model

    def figures(forward, params, images):
        _, attentions = forward(images, return_attention=True)
        size, token = model.patch_size, model.class_token
        grid = attention_grid(images, attentions[-1], size, token)
        grid = grid[: max(1, PIXELS * 3 // grid[0].size)]
        flow = attention_grid(images, rollout(attentions)[:, None], size, token)
        pictures = {
            "attention": Grid(
                grid, "Attention of the last block: the image, then the same, red where each of its heads attends."
            ),
            "attention_rollout": Grid(
                rearrange(flow, "b k h w c -> k b h w c"),
                "Attention through all blocks (rollout): each image above the same, red where the answer comes from.",
            ),
            "patch_filters": Grid(
                patch_filters(params["patch_embed"]["projection"]["kernel"], size, images.shape[-1]),
                "The patch embedding's principal filters, the strongest first.",
            ),
        }
        if model.positions == "learned":
            caption = (
                "How alike the learned positions are (cosine): each map is one patch's, at its place in the image."
            )
            rows = images.shape[1] // size
            similarity = position_similarity(params["positions"][0, model.prefix_positions :], rows)
            pictures["position_similarity"] = Grid(similarity, caption)
        return pictures

    def overlay(forward, images):
        _, attentions = forward(images, return_attention=True)
        return red_overlay(
            images, attention_maps(images, attentions[-1], model.patch_size, model.class_token).mean(axis=1)
        )

    task = classification_task(config, source, model, to_model_range, figures, overlay)
    if config.init_from is None:
        return task
    return replace(task, initial_params=partial(read_initial_params, config, source))


def to_model_range(images):
    """Images in [0, 1] as pixels in [-1, 1]."""
    return 2.0 * images - 1.0


def attention_grid(images, weights, patch_size: int, class_token: bool):
    """One row an example [B, 1 + H, h, w, 3]: the image, then the same for each head, red where it attends."""
    maps = attention_maps(images, weights, patch_size, class_token)
    image = jnp.broadcast_to(images[..., :3], (*images.shape[:3], 3))
    return jnp.concatenate([image[:, None], red_overlay(images[:, None], maps)], axis=1)


def attention_maps(images, weights, patch_size: int, class_token: bool):
    """Where each head of a block attends in the images [B, H, h, w], its brightest patch = 1.

    That is the class token's attention to the patches, or without one the mean attention that a patch receives.
    """
    height, width = images.shape[1] // patch_size, images.shape[2] // patch_size
    received = weights[:, :, 0] if class_token else reduce(weights, "b h t s -> b h s", "mean")
    received = received[..., -height * width :]
    received = received / received.max(axis=-1, keepdims=True)
    return repeat(received, "b h (n m) -> b h (n p1) (m p2)", n=height, p1=patch_size, p2=patch_size)


def red_overlay(images, maps):
    """Images [..., h, w, C] in gray, red where their maps [..., h, w] are near 1: [..., h, w, 3]."""
    share = 0.65 * maps[..., None]
    return images.mean(axis=-1, keepdims=True) * (1.0 - share) + jnp.array([1.0, 0.24, 0.12]) * share


def rollout(attentions):
    """Attention through all blocks [B, T, T], each its heads' mean and, by the residual, as much of the token itself.

    Abnar & Zuidema 2020, arXiv 2005.00928, equation 1.
    """
    through = jnp.eye(attentions[0].shape[-1])[None]
    for weights in attentions:
        through = (0.5 * weights.mean(axis=1) + 0.5 * jnp.eye(weights.shape[-1])) @ through
    return through


def patch_filters(kernel, patch_size: int, channels: int):
    """The principal components [r, c, P, P] of the filters that embed a patch, gray, as figure 7 of the ViT's paper."""
    components = jnp.linalg.svd(kernel.T - kernel.mean(axis=1), full_matrices=False)[2]
    columns = min(8, len(components))
    shown = components[: min(2, len(components) // columns) * columns]
    gray = reduce(shown, "k (p q c) -> k p q", "mean", p=patch_size, q=patch_size, c=channels)
    low, high = gray.min(axis=(1, 2), keepdims=True), gray.max(axis=(1, 2), keepdims=True)
    return rearrange((gray - low) / jnp.maximum(high - low, 1e-12), "(r k) p q -> r k p q", k=columns)


def position_similarity(positions, rows: int):
    """Cosines [n, m, n, m] between the positions of a grid's patches, from -1 as 0 to 1."""
    unit = positions / jnp.linalg.norm(positions, axis=-1, keepdims=True)
    return rearrange(0.5 + 0.5 * unit @ unit.T, "(n m) (k l) -> n m k l", n=rows, k=rows)


def main() -> None:
    train_program(parse("vit", PRESETS, resolve=resolve), make_task)


if __name__ == "__main__":
    run_main(main)
