"""Vision Transformers on images of digits and clothes."""

from dataclasses import dataclass, field

from configs.base import Augment, Optim, Run
from configs.base import Config as BaseConfig
from w2jax import ViT


@dataclass(frozen=True)
class Config(BaseConfig):
    """A Vision Transformer that classifies images."""

    model: ViT = ViT(10, patch_size=7, embed_dim=64, depth=4, num_heads=4, mlp_dim=128)
    augment: Augment = field(default_factory=Augment)
    label_smoothing: float = 0.0
    """Part of each target that is spread evenly over all classes."""


PRESETS = {
    "tiny": Config(
        model=ViT(10, patch_size=7, embed_dim=32, depth=2, num_heads=2, mlp_dim=64),
        optim=Optim(learning_rate=3e-3),
        run=Run(steps=150, batch_size=64, log_every=25, eval_every=75, save_every=75),
    ),
    "sample": Config(),
}
