"""Counts the model FLOPs: those of the equations, before a compiler changes or repeats any operation."""

import math
from collections.abc import Iterator
from typing import Any

import jax

from configs.base import Config
from train.data import Source
from train.engine.program import Program


def model_flops(config: Config, make_task, source: Source, program: Program) -> float:
    """Returns the FLOPs of the matrix products and convolutions in one step on the whole batch."""
    step = make_task(config, source).step
    return flops_of(jax.make_jaxpr(step)(program.state_shapes, program.batch_shapes).jaxpr)


def flops_of(jaxpr: Any) -> float:
    """Counts 2 FLOPs per multiply-add of a jaxpr's products.

    The body of a scan counts once per iteration. For a cond, the largest branch counts.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        inner = [flops_of(part) for part in _parts(equation.params)]
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += max(inner, default=0.0) if equation.primitive.name == "cond" else times * sum(inner)
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            total += 2 * math.prod(equation.outvars[0].aval.shape) * _length(equation)
    return total


def _length(equation: Any) -> int:
    """Returns the multiply-adds per element of the result."""
    left, right = (x.aval.shape for x in equation.invars[:2])
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return math.prod(left[i] for i in contracted)
    out_features = equation.params["dimension_numbers"].rhs_spec[0]
    return math.prod(right) // right[out_features]


def _parts(params: Any) -> Iterator[Any]:
    """Yields the jaxprs among an equation's parameters."""
    for value in params.values():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            item = getattr(item, "jaxpr", item)  # unwraps a ClosedJaxpr
            if hasattr(item, "eqns"):
                yield item
