"""timm's VisionTransformer in torch, with timm's names. It has only the options that the tests need."""

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, dim, heads, qkv_bias, qk_norm, eps):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=qkv_bias), nn.Linear(dim, dim)
        if qk_norm:
            self.q_norm, self.k_norm = (nn.LayerNorm(dim // heads, eps=eps) for _ in range(2))

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, dim, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, width), nn.Linear(width, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, dim, heads, width, qkv_bias, qk_norm, layer_scale, eps):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)
        self.attn, self.mlp = Attention(dim, heads, qkv_bias, qk_norm, eps), Mlp(dim, width)
        self.ls1, self.ls2 = (LayerScale(dim) if layer_scale else nn.Identity() for _ in range(2))

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    def __init__(self, channels, dim, patch):
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, patch)

    def forward(self, images):
        return self.proj(images).flatten(2).transpose(1, 2)


class TimmViT(nn.Module):
    """`pool` is "token" or "avg". With "avg", the norm comes after the pooling. Registers have position embeddings."""

    def __init__(
        self,
        classes,
        patch,
        dim,
        depth,
        heads,
        width,
        patches,
        channels,
        pool="token",
        registers=0,
        qkv_bias=True,
        qk_norm=False,
        layer_scale=False,
        eps=1e-6,
    ):
        super().__init__()
        self.patch_embed, self.pool, self.prefix = PatchEmbed(channels, dim, patch), pool, 1 + registers
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.reg_token = nn.Parameter(torch.zeros(1, registers, dim)) if registers else None
        self.pos_embed = nn.Parameter(torch.zeros(1, self.prefix + patches, dim))
        self.blocks = nn.Sequential(
            *(Block(dim, heads, width, qkv_bias, qk_norm, layer_scale, eps) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(dim, eps=eps) if pool == "token" else nn.Identity()
        self.fc_norm = nn.LayerNorm(dim, eps=eps) if pool == "avg" else nn.Identity()
        self.head = nn.Linear(dim, classes)

    def forward(self, images):
        """images [B, C, h, w]."""
        x = self.patch_embed(images)
        front = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        x = self.norm(self.blocks(torch.cat([*front, x], dim=1) + self.pos_embed))
        x = x[:, 0] if self.pool == "token" else x[:, self.prefix :].mean(dim=1)
        return self.head(self.fc_norm(x))
