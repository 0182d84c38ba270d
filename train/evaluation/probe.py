"""A linear probe (Alain & Bengio 2017) measures how well a linear classifier predicts labels from codes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from train.evaluation.arrays import HostOrDevice, check_labels, check_points, check_same_width

_STEPS = 500
_TOLERANCE = 1e-5  # largest gradient component, in nats; with 1e-4, 1 in 2,000 predictions would differ


def probe_accuracy(
    codes: Float[HostOrDevice, "N Z"],
    labels: Int[HostOrDevice, "N"],
    test_codes: Float[HostOrDevice, "M Z"],
    test_labels: Int[HostOrDevice, "M"],
    num_classes: int,
) -> float:
    """Trains multinomial logistic regression on `codes` and returns its accuracy on `test_codes`, from 0 to 1.

    All codes are standardized with the mean and standard deviation of `codes`. The loss is Σ cross-entropy + |W|² / 2;
    biases are not penalized. The minimizing weights are unique even if the classes are separable. L-BFGS starts
    from 0, so the result is deterministic.

    Raises:
        ValueError: the shapes do not match, or a label is not in 0..num_classes-1.
    """
    codes, test_codes = check_points("codes", codes), check_points("test_codes", test_codes)
    check_same_width(codes=codes, test_codes=test_codes)
    labels, test_labels = (
        check_labels("labels", labels, len(codes)),
        check_labels("test_labels", test_labels, len(test_codes)),
    )
    for name, values in (("labels", labels), ("test_labels", test_labels)):
        if values.min() < 0 or values.max() >= num_classes:
            raise ValueError(f"{name} must be in 0..{num_classes - 1}, got {values.min()}..{values.max()}")
    mean, std = codes.mean(axis=0, dtype=np.float64), codes.std(axis=0, dtype=np.float64)
    # A coordinate that is constant up to rounding has no information. Division by its std gives NaN or large values.
    std = np.where(std > 1e-6 * np.abs(mean), std, 1)
    weights, biases = _fit((codes - mean) / std, jax.nn.one_hot(labels, num_classes))
    answers = ((test_codes - mean) / std @ np.asarray(weights) + np.asarray(biases)).argmax(axis=1)
    return float((answers == test_labels).mean())


@jax.jit
def _fit(codes: Float[Array, "N Z"], targets: Float[Array, "N V"]) -> tuple[Float[Array, "Z V"], Float[Array, "V"]]:
    """Returns the (weights, biases) that minimize the loss."""

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
