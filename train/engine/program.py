"""A task on a mesh: the sharding of its state and batches, and its training step, traced and ready to compile."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree

from configs.base import Config
from train.config.options import model_flags
from train.data import Source
from train.engine.sharding import batch_sharding, state_sharding
from train.engine.step import skip_nonfinite
from train.process.errors import UserError, as_user_error
from train.task import Batch, State, Task

# Matches a convolution with more than one group of channels or examples in the text of a program.
_GROUPED = re.compile(r"(feature|batch)_group_count = (?!1\b)\d+")


class Program:
    """The program that the training loop runs and the dry run compiles.

    The devices of the mesh may be unavailable, such as a TPU topology, as long as no array is placed on them.
    """

    def __init__(
        self,
        config: Config,
        task: Task,
        source: Source,
        mesh: jax.sharding.Mesh,
        feature: jax.ShapeDtypeStruct | None = None,
    ):
        """Traces the training step for the image shape of `source`, or for a `feature` of each image.

        Raises:
            UserError: if the model, the optimizer, the images and the mesh do not work together.
        """
        self.mesh, self._source = mesh, source
        self._step = task.step if config.run.on_nonfinite == "stop" else skip_nonfinite(task.step)
        batch, size = batch_sharding(mesh), config.run.batch_size
        image = jax.ShapeDtypeStruct(source.image_shape, jnp.uint8)
        examples = {"image": image} if feature is None else {"features": feature}
        number = jax.ShapeDtypeStruct((), jnp.int32)
        self.batch_shapes = {
            name: jax.ShapeDtypeStruct((size, *x.shape), x.dtype, sharding=batch)
            for name, x in {**examples, "label": number, "index": number}.items()
        }
        with as_user_error(model_flags(config)):
            shapes = jax.eval_shape(task.init)
            _check_sizes(shapes)
            self.state_shapes: State = jax.tree.map(_placed, shapes, state_sharding(mesh, shapes))
            self.lowered_step = self._step_jit(self._step).lower(self.state_shapes, self.batch_shapes)
        if mesh.shape["tensor"] > 1 and _GROUPED.search(self.lowered_step.as_text()):
            raise UserError(
                f"--mesh.tensor must be 1 for a model with grouped convolutions, got {mesh.shape['tensor']}: "
                "XLA would multiply their gradients by this size. Use --mesh.data or --mesh.fsdp instead"
            )

    def lower_many(self, most: int) -> jax.stages.Lowered:
        """Lowers up to `most` steps in one call, on a training split of which each device has a full copy.

        Returns:
            A function to compile: (state, examples [N, …] by name, example indices [most, B], number of steps n) ->
            (state, metrics [most]). Only the first n metrics are valid.
        """
        count, (size,), place = len(self._source), self.batch_shapes["index"].shape, self.batch_shapes["index"].sharding

        def many(state, examples, indices, steps):
            def step(i, state):
                index = jax.lax.with_sharding_constraint(indices[i], place)
                return self._step(state, {**{name: x[index] for name, x in examples.items()}, "index": index})

            def body(i, carry):
                state, metrics = carry
                state, one = step(i, state)
                return state, jax.tree.map(lambda all_, x: all_.at[i].set(x), metrics, one)

            shapes = jax.eval_shape(step, 0, state)[1]
            metrics = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), shapes)
            # `steps` is an argument, so that the same program also runs the fewer steps before an evaluation.
            return jax.lax.fori_loop(0, steps, body, (state, metrics))

        def whole(shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=self.replicated)

        batch = {name: x for name, x in self.batch_shapes.items() if name != "index"}
        examples = {name: whole((count, *x.shape[1:]), x.dtype) for name, x in batch.items()}
        indices, steps = whole((most, size), jnp.int32), whole((), jnp.int32)
        return self._step_jit(many).lower(self.state_shapes, examples, indices, steps)

    def jit(self, function: Callable, places: PyTree[NamedSharding], **options: Any) -> jax.stages.Wrapped:
        """Returns `function` jitted for the mesh. `places` are the shardings of its results."""

        def on_mesh(*arguments):
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):  # `gathered_by_layer` reads it.
                return function(*arguments)

        return jax.jit(on_mesh, out_shardings=places, **options)

    @property
    def run_once(self) -> dict[str, Any]:
        """Compiler options for functions that run rarely. On CPU, optimizing them takes longer than running them."""
        return {"xla_backend_optimization_level": 0} if self.mesh.devices.flat[0].platform == "cpu" else {}

    def _step_jit(self, step: Callable) -> jax.stages.Wrapped:
        return self.jit(step, (self.places, self.replicated), donate_argnums=0)

    def rows(self, size: int) -> np.ndarray:
        """Returns the row numbers of a batch of `size` that this process's devices store, in ascending order."""
        parts = self.batch_shapes["index"].sharding.addressable_devices_indices_map((size,)).values()
        return np.unique(np.concatenate([np.arange(size)[part] for part in parts]))

    def place(self, batch: Mapping[str, np.ndarray], rows: np.ndarray, size: int) -> Batch:
        """Shards a batch of `size` examples over the devices. `batch` contains only the `rows` of this process."""
        sharding = self.batch_shapes["index"].sharding

        def placed(x: np.ndarray) -> jax.Array:
            def part(index: Any) -> np.ndarray:
                start, stop, _ = index[0].indices(size)
                return x[np.searchsorted(rows, start) : np.searchsorted(rows, stop)]

            return jax.make_array_from_callback((size, *x.shape[1:]), sharding, part)

        return {name: placed(x) for name, x in batch.items()}

    def replicate(self, x: np.ndarray) -> jax.Array:
        """Copies an array to every device of every process."""
        return jax.make_array_from_callback(x.shape, self.replicated, lambda index: x[index])

    @property
    def places(self) -> PyTree[NamedSharding]:
        """The sharding of each leaf of the State."""
        return jax.tree.map(lambda x: x.sharding, self.state_shapes)

    @property
    def devices(self) -> str:
        """A text that names the devices and the mesh."""
        processes = len({device.process_index for device in self.mesh.devices.flat})
        text = f"{self.mesh.size} {self.mesh.devices.flat[0].platform.upper()} device{'s' * (self.mesh.size > 1)}"
        axes = ", ".join(f"{axis} {size}" for axis, size in self.mesh.shape.items() if size > 1)
        return text + (f" of {processes} processes" if processes > 1 else "") + (f" (mesh: {axes})" if axes else "")

    @property
    def replicated(self) -> NamedSharding:
        """The sharding with a full copy on each device. Metrics use it, so that every process can read them."""
        return NamedSharding(self.mesh, PartitionSpec())

    def gather(self, state: State) -> State:
        """Returns the state with all its values readable in this process."""
        if jax.process_count() == 1:
            return state
        return jax.device_get(jax.jit(lambda x: x, out_shardings=self.replicated)(state))


def _check_sizes(shapes: PyTree) -> None:
    """Raises UserError if an array is so large that XLA would abort the process."""
    for path, x in jax.tree_util.tree_leaves_with_path(shapes):
        if math.prod(x.shape) * x.dtype.itemsize >= 2**63:
            name, shape = jax.tree_util.keystr(path, simple=True, separator="."), "×".join(map(str, x.shape))
            raise UserError(
                f"an array must have less than 2**63 bytes, got {name} of {shape}. Set smaller sizes with --model.*"
            )


def _placed(x: jax.ShapeDtypeStruct, place: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
