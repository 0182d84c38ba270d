"""python -m train.vit [PRESET]: a Vision Transformer that classifies images."""

from dataclasses import replace
from functools import partial

from einops import reduce, repeat

from configs.vit import PRESETS, Config
from train.classify import beside, classification_task
from train.cli import parse, run_main
from train.data import Source
from train.pretrained import read_start, resolve
from train.task import Grid, Task


def make_task(config: Config, source: Source) -> Task:
    """The task of classifying images like those of `source`."""
    model = config.model

    def figures(forward, images):
        _, attentions = forward(images, return_attention=True)
        grid = attention_grid(images, attentions[-1], model.patch_size, model.class_token)
        return {"attention": Grid(grid, "Attention of the last block: the image, then where each head looked.")}

    task = classification_task(config, source, model, lambda images: 2.0 * images - 1.0, figures)
    return task if config.init_from is None else replace(task, start=partial(read_start, config, source))


def attention_grid(images, weights, patch_size: int, class_token: bool):
    """One row an example [B, 1 + H, h, w]: the image in gray, then where each head of a block looked, brightest = 1.

    That is the class token's attention to the patches, or without one the mean attention that a patch receives.
    """
    height, width = images.shape[1] // patch_size, images.shape[2] // patch_size
    looked = weights[:, :, 0] if class_token else reduce(weights, "b h t s -> b h s", "mean")
    looked = looked[..., -height * width :]
    looked = looked / looked.max(axis=-1, keepdims=True)
    maps = repeat(looked, "b h (n m) -> b h (n p1) (m p2)", n=height, p1=patch_size, p2=patch_size)
    return beside(images, maps)


def main() -> None:
    config = parse("vit", PRESETS, resolve=resolve)
    from train.loop import fit  # Imported late: --help and a mistake in the options should not wait for orbax.

    fit(config, make_task)


if __name__ == "__main__":
    run_main(main)
