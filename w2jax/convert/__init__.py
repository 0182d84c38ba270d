"""Convert weights in both directions between w2jax and PyTorch, timm, Hugging Face, torchvision or Google's ViTs.

`python -m w2jax.convert SRC DST --format timm|huggingface|torchvision|google` converts files.
"""

from w2jax.interrupt import exit_on_interrupt

exit_on_interrupt("w2jax.convert")  # before the imports, which take time

from w2jax.convert.load_save import load, save  # noqa: E402
from w2jax.convert.state_dict import from_torch, to_torch  # noqa: E402

__all__ = ["from_torch", "load", "save", "to_torch"]
