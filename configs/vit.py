"""Vision Transformers on images of digits and clothes; each preset's measured results stand in the README."""

from dataclasses import dataclass

from configs.base import ADAMW, CLOTHES, DIGITS, Augment, ClassifierConfig, Data, Optim, Run
from w2jax import ViT

# 28×28 images as 4×4 patches: a third of the tokens that patches of 4 pixels make.
SMALL = ViT(10, patch_size=7, embed_dim=64, depth=4, num_heads=4, mlp_dim=128, pool="gap", class_token=False)


@dataclass(frozen=True)
class Config(ClassifierConfig):
    """A Vision Transformer that classifies images."""

    model: ViT = SMALL
    init_from: str | None = None
    """Weights to begin with: a file or folder of timm, Hugging Face, torchvision, Google or w2jax, or a run folder. The
    model is built as the file says; positions are resized, and the head is new if its number of classes differs."""


# 32×32 colour images as 8×8 patches of 4 pixels: 4 M parameters, meant for an accelerator.
COLOUR = ViT(
    10,
    patch_size=4,
    embed_dim=192,
    depth=9,
    num_heads=3,
    mlp_dim=768,
    drop_path=0.1,
    pool="gap",
    class_token=False,
    scan_layers=True,
)

PHOTOS = Augment(shift=4, flip=True, mixup=0.2, rand_augment=2)

PRESETS = {
    "tiny": Config(
        model=ViT(10, patch_size=7, embed_dim=32, depth=2, num_heads=2, mlp_dim=64),
        optim=Optim(learning_rate=3e-3),
        run=Run(steps=400, batch_size=64, log_every=50, eval_every=200, save_every=200),
    ),
    "sample": Config(
        optim=ADAMW, augment=DIGITS, run=Run(steps=2000, batch_size=100, log_every=100, eval_every=500, save_every=500)
    ),
    "mnist": Config(
        data=Data("mnist"),
        optim=ADAMW,
        augment=DIGITS,
        run=Run(steps=30_000, batch_size=100, log_every=200, eval_every=3000, save_every=3000),
    ),
    "fashion_mnist": Config(
        data=Data("fashion_mnist"),
        model=SMALL.clone(embed_dim=96, mlp_dim=192),
        optim=Optim(learning_rate=2e-3, ema=0.998),
        augment=CLOTHES,
        label_smoothing=0.1,
        run=Run(steps=24_000, batch_size=100, log_every=200, eval_every=3000, save_every=3000),
    ),
    "cifar10": Config(
        data=Data("cifar10"),
        model=COLOUR,
        optim=Optim(learning_rate=1e-3, ema=0.999),
        augment=PHOTOS,
        run=Run(steps=78_000, batch_size=128, log_every=200, eval_every=3900, save_every=3900),
    ),
    "cifar100": Config(
        data=Data("cifar100"),
        model=COLOUR.clone(num_classes=100),
        optim=Optim(learning_rate=1e-3, ema=0.999),
        augment=PHOTOS,
        run=Run(steps=78_000, batch_size=128, log_every=200, eval_every=3900, save_every=3900),
    ),
}
