"""The PyTorch course's four models, written for speed as usual in PyTorch today.

The ViT and the classifier by attention over rows use torch's fused attention kernel. `nn.MultiheadAttention`, which can
return weights, is a separate baseline.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.inputs import ATTENTION, LSTM, VIT


class LSTMClassifier(nn.Module):
    """An LSTM over the rows of an image, and a linear layer on the last output. `options` are fields of ours."""

    def __init__(self, options: Mapping[str, Any] = LSTM, width: int = 28):
        super().__init__()
        self.lstm = nn.LSTM(width, options["hidden_size"], options["num_layers"], batch_first=True)
        self.head = nn.Linear(options["hidden_size"], options["num_classes"])

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    """Self-attention that computes its three projections in one product."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """Linear → GELU → linear."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """z' = MSA(LN(z)) + z; z = MLP(LN(z')) + z'."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width, heads), Mlp(width, hidden)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def blocks(options: Mapping[str, Any]) -> list[Block]:
    return [Block(options["embed_dim"], options["num_heads"], options["mlp_dim"]) for _ in range(options["depth"])]


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


class ViT(nn.Module):
    """The Vision Transformer, with timm's names.

    `options` are fields of our ViT. `side` is the side of square images, or (height, width).
    """

    def __init__(self, options: Mapping[str, Any] = VIT, side: int | tuple[int, int] = 28, channels: int = 1):
        super().__init__()
        width, patch = options["embed_dim"], pair(options["patch_size"])
        rows, columns = (pixels // size for pixels, size in zip(pair(side), patch, strict=True))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch, stride=patch)})
        self.pool, self.prefix = options.get("pool", "cls"), int(options.get("class_token", True))
        if self.prefix:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.prefix + rows * columns, width))
        self.blocks = nn.Sequential(*blocks(options))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, options["num_classes"])

    def forward(self, images):
        """Returns the logits of images [B, C, h, w]."""
        x = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        if self.prefix:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = self.blocks(x + self.pos_embed)
        if self.pool == "cls":
            return self.head(self.norm(x[:, 0]))
        return self.head(self.norm(x[:, self.prefix :]).mean(dim=1))


class AttentionClassifier(nn.Module):
    """Embed each row → add its position → encoder → LayerNorm → mean → head. `options` are fields of ours."""

    def __init__(self, options: Mapping[str, Any] = ATTENTION, rows: int = 28, columns: int = 28):
        super().__init__()
        width = options["embed_dim"]
        self.embed, self.positions = nn.Linear(columns, width), nn.Parameter(torch.zeros(1, rows, width))
        self.encoder = nn.ModuleDict({f"block_{i}": block for i, block in enumerate(blocks(options))})
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, options["num_classes"])

    def forward(self, x):
        x = self.embed(x) + self.positions
        for block in self.encoder.values():
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


def initialize_as_timm(model: nn.Module) -> None:
    """Initializes linear layers, positions and class token as timm does for ViTs. Other layers stay as they are."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    for name, parameter in model.named_parameters():
        if name in ("pos_embed", "positions"):
            nn.init.trunc_normal_(parameter, std=0.02)
        elif name == "cls_token":
            nn.init.normal_(parameter, std=1e-6)


def hidden(width: int, sizes: Sequence[int], dropout: float, batch_norm: Sequence[int] = ()) -> list[nn.Module]:
    """Returns hidden layers. Those at the indices `batch_norm` have batch normalization."""
    layers: list[nn.Module] = []
    for i, size in enumerate(sizes):
        norm = [nn.BatchNorm1d(size)] if i in batch_norm else []
        layers += [nn.Linear(width, size), *norm, nn.Dropout(dropout), nn.ReLU()]
        width = size
    return layers


class Encoder(nn.Module):
    """Maps an image to the mean and log-variance of its code."""

    def __init__(self, pixels: int, sizes: Sequence[int], latent: int, dropout: float):
        super().__init__()
        self.hidden = nn.Sequential(*hidden(pixels, sizes, dropout))
        self.mean, self.log_variance = nn.Linear(sizes[-1], latent), nn.Linear(sizes[-1], latent)

    def forward(self, images):
        x = self.hidden(images.flatten(1))
        return self.mean(x), self.log_variance(x)


class AAE(nn.Module):
    """Encoder, decoder and discriminator with these hidden sizes. The loss contains the discriminator's sigmoid."""

    def __init__(
        self,
        dropout: float = 0.2,
        pixels: int = 1024,
        latent: int = 8,
        encoder: Sequence[int] = (512, 512),
        decoder: Sequence[int] = (512, 512),
        discriminator: Sequence[int] = (512, 256),
    ):
        super().__init__()
        self.encoder = Encoder(pixels, encoder, latent, dropout)
        of_code = hidden(latent, decoder, dropout, batch_norm=(1,))
        self.decoder = nn.Sequential(*of_code, nn.Linear(decoder[-1], pixels), nn.Tanh())
        self.discriminator = nn.Sequential(*hidden(latent, discriminator, dropout), nn.Linear(discriminator[-1], 1))
