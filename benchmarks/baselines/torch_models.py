"""The PyTorch course's four models, written for speed as usual in PyTorch today.

The ViT and the classifier by attention over rows use torch's fused attention kernel. `nn.MultiheadAttention`, which can
return weights, is a separate baseline.
"""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.inputs import ATTENTION, LSTM, VIT


class LSTMClassifier(nn.Module):
    """An LSTM over the rows of an image, and a linear layer on the last output."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(28, LSTM["hidden_size"], LSTM["num_layers"], batch_first=True)
        self.head = nn.Linear(LSTM["hidden_size"], LSTM["num_classes"])

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


def blocks(options: dict) -> list[Block]:
    return [Block(options["embed_dim"], options["num_heads"], options["mlp_dim"]) for _ in range(options["depth"])]


class ViT(nn.Module):
    """The Vision Transformer, with timm's names."""

    def __init__(self):
        super().__init__()
        width, patch = VIT["embed_dim"], VIT["patch_size"]
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(1, width, patch, stride=patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (28 // patch) ** 2, width))
        self.blocks = nn.Sequential(*blocks(VIT))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, VIT["num_classes"])

    def forward(self, images):
        """Returns the logits of images [B, 1, h, w]."""
        x = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x)[:, 0]))


class AttentionClassifier(nn.Module):
    """Embed each row → add its position → encoder → LayerNorm → mean → head."""

    def __init__(self):
        super().__init__()
        width = ATTENTION["embed_dim"]
        self.embed, self.positions = nn.Linear(28, width), nn.Parameter(torch.zeros(1, 28, width))
        self.encoder = nn.ModuleDict({f"block_{i}": block for i, block in enumerate(blocks(ATTENTION))})
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, ATTENTION["num_classes"])

    def forward(self, x):
        x = self.embed(x) + self.positions
        for block in self.encoder.values():
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


class Encoder(nn.Module):
    """Maps an image to the mean and log-variance of its code."""

    def __init__(self, dropout: float):
        super().__init__()
        self.hidden = nn.Sequential(
            *(nn.Linear(1024, 512), nn.Dropout(dropout), nn.ReLU()),
            *(nn.Linear(512, 512), nn.Dropout(dropout), nn.ReLU()),
        )
        self.mean, self.log_variance = nn.Linear(512, 8), nn.Linear(512, 8)

    def forward(self, images):
        x = self.hidden(images.flatten(1))
        return self.mean(x), self.log_variance(x)


class AAE(nn.Module):
    """Encoder, decoder and discriminator. The loss contains the discriminator's sigmoid."""

    def __init__(self, dropout: float = 0.2):
        super().__init__()
        self.encoder = Encoder(dropout)
        self.decoder = nn.Sequential(
            *(nn.Linear(8, 512), nn.Dropout(dropout), nn.ReLU()),
            *(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.Dropout(dropout), nn.ReLU()),
            *(nn.Linear(512, 1024), nn.Tanh()),
        )
        self.discriminator = nn.Sequential(
            *(nn.Linear(8, 512), nn.Dropout(dropout), nn.ReLU()),
            *(nn.Linear(512, 256), nn.Dropout(dropout), nn.ReLU()),
            nn.Linear(256, 1),
        )
