"""A linear probe (Alain & Bengio 2017): how well a linear classifier reads the label out of a code."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from train.evaluation.arrays import Anywhere, classes, points, same_width

_STEPS = 500
_TOLERANCE = 1e-5  # of the largest gradient, in nats: at 1e-4 still 1 answer in 2,000 would change


def probe_accuracy(
    codes: Float[Anywhere, "N Z"],
    labels: Int[Anywhere, "N"],
    test_codes: Float[Anywhere, "M Z"],
    test_labels: Int[Anywhere, "M"],
    num_classes: int,
) -> float:
    """Part of the test codes that multinomial logistic regression on the other codes is right about.

    Codes are standardised by mean and deviation of `codes`. The loss is Σ cross-entropy + |W|² / 2, without the
    biases: a unique minimum, also where the classes can be separated; it is found by L-BFGS from 0, so the result is
    deterministic.

    Raises:
        ValueError: if shapes do not fit each other, or a label does not lie in 0..num_classes-1.
    """
    codes, test_codes = points("codes", codes), points("test_codes", test_codes)
    same_width(codes=codes, test_codes=test_codes)
    labels, test_labels = classes("labels", labels, len(codes)), classes("test_labels", test_labels, len(test_codes))
    for name, values in (("labels", labels), ("test_labels", test_labels)):
        if values.min() < 0 or values.max() >= num_classes:
            raise ValueError(f"{name}: wanted 0..{num_classes - 1}, got {values.min()}..{values.max()}")
    mean, std = codes.mean(axis=0, dtype=np.float64), codes.std(axis=0, dtype=np.float64)
    # A coordinate that stands still but for rounding says nothing, and must become neither NaN nor large.
    std = np.where(std > 1e-6 * np.abs(mean), std, 1)
    weights, biases = _fit((codes - mean) / std, jax.nn.one_hot(labels, num_classes))
    answers = ((test_codes - mean) / std @ np.asarray(weights) + np.asarray(biases)).argmax(axis=1)
    return float((answers == test_labels).mean())


@jax.jit
def _fit(codes: Float[Array, "N Z"], targets: Float[Array, "N V"]) -> tuple[Float[Array, "Z V"], Float[Array, "V"]]:
    """(weights, biases) of least loss."""

    def loss(params):
        weights, biases = params
        logits = jnp.matmul(codes, weights, precision=jax.lax.Precision.HIGHEST) + biases
        return optax.softmax_cross_entropy(logits, targets).mean() + (weights**2).sum() / (2 * len(codes))

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def unfinished(carry):
        _, gradient, _, step = carry
        return (step < _STEPS) & (optax.tree.norm(gradient, ord=jnp.inf) > _TOLERANCE)

    def step(carry):
        params, _, state, count = carry
        value, gradient = value_and_grad(params, state=state)
        updates, state = solver.update(gradient, state, params, value=value, grad=gradient, value_fn=loss)
        return jax.tree.map(jnp.add, params, updates), optax.tree.get(state, "grad"), state, count + 1

    start = jnp.zeros((codes.shape[1], targets.shape[1])), jnp.zeros(targets.shape[1])
    infinite = jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), start)
    params, *_ = jax.lax.while_loop(unfinished, step, (start, infinite, solver.init(start), 0))
    return params
