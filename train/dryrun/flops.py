"""FLOPs of the model's equations, before a compiler changes or repeats any."""

import math
from collections.abc import Iterator
from typing import Any

import jax

from configs.base import Config
from train.data import Source
from train.engine.program import Program


def model_flops(config: Config, make_task, source: Source, program: Program) -> float:
    """FLOPs of the matrix products and convolutions of one step on the whole batch."""
    step = make_task(config, source).step
    return flops_of(jax.make_jaxpr(step)(program.state_shapes, program.batch_shapes).jaxpr)


def flops_of(jaxpr: Any) -> float:
    """2 per multiply-add of a jaxpr's products. A scan counts as often as it runs, and of a cond the largest branch."""
    total = 0.0
    for equation in jaxpr.eqns:
        inner = [flops_of(part) for part in _parts(equation.params)]
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += max(inner, default=0.0) if equation.primitive.name == "cond" else times * sum(inner)
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            total += 2 * math.prod(equation.outvars[0].aval.shape) * _length(equation)
    return total


def _length(equation: Any) -> int:
    """Multiply-adds per element of the result."""
    left, right = (x.aval.shape for x in equation.invars[:2])
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return math.prod(left[i] for i in contracted)
    out_features = equation.params["dimension_numbers"].rhs_spec[0]
    return math.prod(right) // right[out_features]


def _parts(params: Any) -> Iterator[Any]:
    """The jaxprs among an equation's parameters."""
    for value in params.values():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            item = getattr(item, "jaxpr", item)  # of a ClosedJaxpr
            if hasattr(item, "eqns"):
                yield item
