"""python -m train.vit [PRESET]: trains a Vision Transformer that classifies images.

python -m train.vit --run.steps 4000 --run.seed 1  # sample, but longer
python -m train.vit --init-from vit.safetensors --data.name my_images
"""

from dataclasses import replace
from functools import partial

import jax.numpy as jnp
import numpy as np
from einops import einsum, rearrange, reduce, repeat
from flax import linen as nn

from configs.vit import PRESETS, Config
from train.classify import classification_task
from train.config.cli import parse, run_main
from train.data import Source
from train.data.normalize import input_channels, normalized
from train.engine.init_from import read_initial_params, resolve
from train.engine.main import train_program
from train.task import Grid, Rollout, Task
from w2jax.vit import PatchSize, ViT, patch_grid, patch_sides

MAPS = 5  # maps of position similarity in a row and in a column; more would be too small to read
PIXELS = 2**20  # limit for an attention picture; fewer images are drawn if they are large, to keep the report small


def make_task(config: Config, source: Source) -> Task:
    """The task of training a Vision Transformer on images like those of `source`."""
    model = config.model
    input_channels(config.normalize, source.image_shape[-1])  # Checks the option.

    def figures(forward, params, images):
        attentions, pool_weights = all_attentions(forward, images)
        blocks = len(attentions)
        size, token = model.patch_size, model.class_token
        grid = attention_grid(images, attentions[-1], size, token)
        grid = grid[: max(1, PIXELS * 3 // grid[0].size)]
        read = shares_read(rollout(attentions), model, pool_weights)
        flow = with_overlays(images, patch_maps(images, read[:, None], size))
        pictures = {
            "attention": Grid(
                grid,
                f"Attention of block {blocks} of {blocks}, the last one: the image, then one copy per head, red where "
                "the head attends.",
                column_labels=("image", *(f"head {head}" for head in range(1, grid.shape[1]))),
            ),
            "attention_rollout": Grid(
                rearrange(flow, "b k h w c -> k b h w c"),
                "Attention through all blocks (rollout): each image, and below it a copy, red where the model attends.",
                row_labels=("image", f"blocks 1–{blocks}" if blocks > 1 else "block 1"),
            ),
            "patch_filters": Grid(
                patch_filters(params["patch_embed"]["projection"]["kernel"], size),
                "Principal components of the patch embedding's filters, the largest first.",
            ),
        }
        if model.positions == "learned":
            positions, rows = params["positions"][0, model.prefix_positions :], patch_grid(images.shape[1:3], size)[0]
            similarity = position_similarity(positions, rows)
            shown, caption = similarity.shape[:2], "each map compares one patch with all patches"
            if shown != similarity.shape[2:]:
                caption = f"each map compares one of {shown[0]} × {shown[1]} evenly spaced patches with all patches"
            pictures["position_similarity"] = Grid(
                similarity,
                f"Cosine similarity of the position embeddings: {caption}. Maps are arranged like the patches in the "
                "image.",
            )
        return pictures

    def overlay(forward, images):
        _, attentions = forward(images, return_attention=True)
        return red_overlay(
            images, attention_maps(images, attentions[-1], model.patch_size, model.class_token).mean(axis=1)
        )

    def shares(state, images):
        def forward(images, **options):
            return model.apply({"params": state.eval_params}, prepare(images), **options)

        attentions, pool_weights = all_attentions(forward, images / 255.0)
        read = shares_read(rollout(attentions), model, pool_weights)
        rows, columns = patch_grid(images.shape[1:3], model.patch_size)
        return rearrange(read[:, -rows * columns :], "b (n m) -> b n m", n=rows)

    prepare = partial(normalized, normalize=config.normalize)
    task = classification_task(config, source, model, prepare, figures, overlay)
    task = replace(task, rollout=Rollout(shares, patch_sides(model.patch_size)))
    if config.init_from is None:
        return task
    return replace(task, initial_params=partial(read_initial_params, config, source))


def attention_grid(images, weights, patch_size: PatchSize, class_token: bool):
    """One row of cells per example [B, 1 + H, h, w, 3]: the image, then one copy per head, red where it attends."""
    return with_overlays(images, attention_maps(images, weights, patch_size, class_token))


def with_overlays(images, maps):
    """One row of cells per example [B, 1 + K, h, w, 3]: the image, then a copy per map [B, K, h, w], red near 1."""
    image = jnp.broadcast_to(images[..., :3], (*images.shape[:3], 3))
    return jnp.concatenate([image[:, None], red_overlay(images[:, None], maps)], axis=1)


def attention_maps(images, weights, patch_size: PatchSize, class_token: bool):
    """Where each head of a block attends in the images [B, H, h, w]. The largest value of each map is 1.

    A map is the class token's attention to the patches. Without a class token, it is the mean over all queries. It is 0
    where the model drops partial patches.
    """
    received = weights[:, :, 0] if class_token else reduce(weights, "b h t s -> b h s", "mean")
    return patch_maps(images, received, patch_size)


def patch_maps(images, received, patch_size: PatchSize):
    """Draws values of all tokens [B, K, T] at their patches in the images [B, K, h, w], divided by the largest one."""
    height, width = patch_grid(images.shape[1:3], patch_size)
    received = received[..., -height * width :]
    received = received / received.max(axis=-1, keepdims=True)
    p1, p2 = patch_sides(patch_size)
    maps = repeat(received, "b h (n m) -> b h (n p1) (m p2)", n=height, p1=p1, p2=p2)
    dropped = [(0, all_ - kept) for all_, kept in zip(images.shape[1:3], maps.shape[2:], strict=True)]
    return jnp.pad(maps, [(0, 0), (0, 0), *dropped])


def red_overlay(images, maps):
    """The images [..., h, w, C] in their colors as [..., h, w, 3], red where their maps [..., h, w] are near 1."""
    share = 0.65 * maps[..., None]
    return images[..., :3] * (1.0 - share) + jnp.array([1.0, 0.24, 0.12]) * share


def rollout(attentions):
    """Attention through all blocks [B, T, T]: the product over blocks of (mean over heads + identity) / 2.

    The identity stands for the residual connection. Abnar & Zuidema 2020, arXiv 2005.00928, equation 1.
    """
    through = jnp.eye(attentions[0].shape[-1])[None]
    for weights in attentions:
        through = (0.5 * weights.mean(axis=1) + 0.5 * jnp.eye(weights.shape[-1])) @ through
    return through


def all_attentions(forward, images):
    """The attention weights of each block, and those of the attention pooling [B, H, 1, T] or None."""
    pooling = None

    def keep(call, arguments, options, context):
        nonlocal pooling
        if context.module.path != ("pool", "attention") or context.method_name != "__call__":
            return call(*arguments, **options)
        x, pooling = call(*arguments, **options, return_weights=True)
        return x, pooling

    with nn.intercept_methods(keep):
        _, attentions = forward(images, return_attention=True)
    return attentions, pooling


def shares_read(through, model: ViT, pool_weights):
    """The share of each token in what the classifier reads [B, T], from a rollout [B, T, T].

    The classifier reads the class token, the mean of the patches, both (the shares are then means), or the tokens that
    the attention pooling attends to. A distilled model has a second class token with its own classifier.
    """
    prefix = model.class_token + model.num_registers
    if model.pool == "cls":
        return through[:, : 1 + model.distilled].mean(axis=1)
    if model.pool == "cls_gap":
        return 0.5 * through[:, 0] + 0.5 * through[:, prefix:].mean(axis=1)
    pooled = through if model.pool_prefix else through[:, prefix:]
    if model.pool == "gap":
        return pooled.mean(axis=1)
    return einsum(pool_weights[:, :, 0].mean(axis=1), pooled, "b t, b t s -> b s")


def patch_filters(kernel, patch_size: PatchSize):
    """Gray principal components [r, c, P, Q] of the patch embedding's filters, as in figure 7 of the ViT paper."""
    components = jnp.linalg.svd(kernel.T - kernel.mean(axis=1), full_matrices=False)[2]
    columns = min(8, len(components))
    shown = components[: min(2, len(components) // columns) * columns]
    height, width = patch_sides(patch_size)
    gray = reduce(shown, "k (p q c) -> k p q", "mean", p=height, q=width)
    low, high = gray.min(axis=(1, 2), keepdims=True), gray.max(axis=(1, 2), keepdims=True)
    return rearrange((gray - low) / jnp.maximum(high - low, 1e-12), "(r k) p q -> r k p q", k=columns)


def position_similarity(positions, rows: int):
    """Cosine similarities [r, c, n, m] of the position embeddings of n × m patches, mapped from [-1, 1] to [0, 1].

    At most MAPS × MAPS patches are compared with all others, evenly spaced from the first to the last.
    """
    unit = positions / jnp.linalg.norm(positions, axis=-1, keepdims=True)
    similarity = rearrange(0.5 + 0.5 * unit @ unit.T, "(n m) (k l) -> n m k l", n=rows, k=rows)
    shown = [np.linspace(0, count - 1, min(count, MAPS)).round().astype(int) for count in similarity.shape[:2]]
    return similarity[np.ix_(*shown)]


def main() -> None:
    train_program(parse("vit", PRESETS, resolve=resolve), make_task)


if __name__ == "__main__":
    run_main(main)
