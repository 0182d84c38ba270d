"""Checks the types of masks, biases and lengths, whose values would otherwise be misread."""

import jax.numpy as jnp
from jaxtyping import Array


def check_masks(*, bias_name: str | None = None, **masks: Array | None) -> None:
    """Raise a ValueError that names the first mask that is not bool.

    A float mask could be additive, with 0 where a query may attend. So nothing is converted silently.

    Args:
        bias_name: name of the argument for an additive mask. None: the function has none.
        **masks: the masks, by the names of the arguments. None: not passed.
    """
    for name, mask in masks.items():
        if mask is None or jnp.issubdtype(mask.dtype, jnp.bool_):
            continue
        convert = f"convert a mask of 0 and 1 with {name} != 0"
        if jnp.issubdtype(mask.dtype, jnp.floating):
            additive = f"Convert an additive mask with {name} == 0"
            additive = additive if bias_name is None else f"Pass an additive mask as {bias_name}"
            advice = f"{additive} (0 and −inf, as in torch); {convert}"
        else:
            advice = convert[0].upper() + convert[1:]
        raise ValueError(f"{name} must be bool (True: attend), got {mask.dtype}. {advice}")


def check_bias(bias: Array | None) -> None:
    """Raise a ValueError if a bias of the logits is not float. A boolean or integer bias is probably a mask."""
    if bias is None or jnp.issubdtype(bias.dtype, jnp.floating):
        return
    boolean = jnp.issubdtype(bias.dtype, jnp.bool_)
    advice = "Pass it as mask" if boolean else "Convert a bias with bias.astype(float); pass a mask as mask=bias != 0"
    raise ValueError(f"bias must be float (it is added to the logits), got {bias.dtype}. {advice}")


def check_lengths(**lengths: Array | None) -> None:
    """Raise a ValueError that names the first lengths that are not integers, by the names of the arguments."""
    for name, value in lengths.items():
        if value is not None and not jnp.issubdtype(jnp.result_type(value), jnp.integer):
            raise ValueError(
                f"{name} must be integers (number of valid positions), got {jnp.result_type(value)}. "
                "Count the valid positions of a padding mask with valid.sum(-1)"
            )
