"""The course's Vision Transformer in PyTorch, as a reference for ours."""

import numpy as np
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, dim, heads, mlp_dim, eps, residual_from_norm):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, dim))
        self.residual_from_norm = residual_from_norm

    def forward(self, x):
        y = self.norm1(x)
        if self.residual_from_norm:
            x = y
        y, weights = self.attention(y, y, y, average_attn_weights=False)
        x = x + y
        return x + self.mlp(self.norm2(x)), weights


class TorchViT(nn.Module):
    def __init__(self, classes, patch, dim, depth, heads, mlp_dim, image, channels, eps=1e-6, residual_from_norm=False):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(patch * patch * channels, dim)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, 1 + image[0] // patch * (image[1] // patch), dim))
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_dim, eps, residual_from_norm) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim, eps=eps), nn.Linear(dim, classes)

    def forward(self, images):
        """images [B, h, w, C]."""
        b, h, w, c = images.shape
        p = self.patch
        x = images.reshape(b, h // p, p, w // p, p, c).permute(0, 1, 3, 2, 4, 5).reshape(b, -1, p * p * c)
        x = torch.cat([self.cls.expand(b, -1, -1), self.embed(x)], dim=1) + self.positions
        attentions = []
        for block in self.blocks:
            x, weights = block(x)
            attentions.append(weights)
        return self.head(self.norm(x[:, 0])), attentions


def state_dict(params):
    """Returns the parameters, or gradients, of our ViT under TorchViT's names."""
    out = {
        "cls": params["cls"],
        "positions": params["positions"],
        "embed.weight": params["patch_embed"]["projection"]["kernel"].T,
        "embed.bias": params["patch_embed"]["projection"]["bias"],
        "norm.weight": params["norm"]["scale"],
        "norm.bias": params["norm"]["bias"],
        "head.weight": params["head"]["kernel"].T,
        "head.bias": params["head"]["bias"],
    }
    for name, block in params["encoder"].items():
        prefix = f"blocks.{name.removeprefix('block_')}."
        for norm in ("norm1", "norm2"):
            out[f"{prefix}{norm}.weight"], out[f"{prefix}{norm}.bias"] = block[norm]["scale"], block[norm]["bias"]
        for ours, theirs in (("fc1", "mlp.0"), ("fc2", "mlp.2")):
            out[f"{prefix}{theirs}.weight"] = block["mlp"][ours]["kernel"].T
            out[f"{prefix}{theirs}.bias"] = block["mlp"][ours]["bias"]
        attention, dim = block["attention"], block["norm1"]["scale"].shape[0]
        qkv = [attention[n] for n in ("query", "key", "value")]
        out[f"{prefix}attention.in_proj_weight"] = np.concatenate([x["kernel"].reshape(dim, -1).T for x in qkv])
        out[f"{prefix}attention.in_proj_bias"] = np.concatenate([x["bias"].reshape(-1) for x in qkv])
        out[f"{prefix}attention.out_proj.weight"] = attention["out"]["kernel"].reshape(-1, dim).T
        out[f"{prefix}attention.out_proj.bias"] = attention["out"]["bias"]
    return {name: torch.from_numpy(np.array(x)) for name, x in out.items()}
