"""Convert weights in both directions between w2jax and PyTorch, timm, Hugging Face, torchvision or Google's ViTs.

`python -m w2jax.convert SRC DST --format timm|huggingface|torchvision|google` converts files.
"""

from w2jax.convert.load_save import load, save
from w2jax.convert.state_dict import from_torch, to_torch

__all__ = ["from_torch", "load", "save", "to_torch"]
