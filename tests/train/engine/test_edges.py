"""Options of the data, the mesh and the processes at the edges of their ranges are refused by name, or work."""

from dataclasses import replace

import jax
import pytest
from runs import small

from configs.base import Distributed
from train.config.checks import check_ranges
from train.config.options import options_of
from train.engine.setup import set_up
from train.process.distributed import connect
from train.process.errors import UserError
from train.vit import make_task

LARGEST = 2**31 - 1
REFUSED = {
    "data.name": ["", "../mnist", "a\nb", "mnist_sample:9.9.9", "no_dataset"],
    "data.train_split": ["", "train[", "train[0:0]", "train[5:2]", "no_split"],
    "data.test_split": ["", "test[", "test[0:0]", "no_split"],
    "data.image_size": [(-1, 28), (0, 28), (28, 0), (1, 1), (LARGEST, 7), (7, LARGEST), (2**20, 2**20)],
    "data.crop": [-0.1, 0.0, 1.1],
    "data.memory_limit": [-1, 2**31],
    "data.workers": [-1, 257, LARGEST],
    "mesh.data": [-2, 0, 9, LARGEST],  # There are 8 devices.
    "mesh.fsdp": [-2, 0, 9, LARGEST],
    "mesh.tensor": [-2, 0, 9, LARGEST],
    "mesh.cpu_devices": [-1, 0, 2**31],
    "mesh.cpu_micro_batch": [-1, 0, 2**31],
}
ACCEPTED = {
    "data.train_split": ["train[:1]", "train[:-9000]"],
    "data.image_size": [(7, 7), (7, 14)],
    "data.crop": [1e-9, 1.0],
    "data.memory_limit": [0, LARGEST],
    "data.workers": [0, 256],
    "mesh.data": [1, 5],
    "mesh.fsdp": [1, 5],
    "mesh.tensor": [-1, 1],
    "mesh.cpu_devices": [1, LARGEST],
    "mesh.cpu_micro_batch": [1, LARGEST],
}


def with_value(config, name, value):
    """Returns a copy of the config in which an option has another value. A crop needs a size."""
    group, option = name.split(".")
    changes = {option: value} | ({"image_size": (14, 14)} if option == "crop" else {})
    return replace(config, **{group: replace(getattr(config, group), **changes)})


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return small(tmp_path_factory.mktemp("edges") / "run")


def test_every_number_of_the_data_and_the_mesh_is_tried(config):
    numbers = {
        option.name
        for option in options_of(config).values()
        if option.name.startswith(("data.", "mesh.")) and type(option.value) is int
    }
    assert len(numbers) > 5 and numbers <= REFUSED.keys() & ACCEPTED.keys()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_a_value_outside_its_range_is_refused_in_one_line(config, name, value):
    with pytest.raises(UserError) as error:
        set_up(with_value(config, name, value), make_task)
    named = {"data.train_split": "split", "data.test_split": "split", "data.name": "dataset"}
    message = str(error.value)
    assert "\n" not in message
    assert any(text in message for text in (named.get(name, name), name.replace("_", "-"), "--model.patch-size"))


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_ends_of_a_range_are_accepted(config, name):
    for value in ACCEPTED[name]:
        changed = with_value(config, name, value)
        check_ranges(changed)
        setup, _ = set_up(changed, make_task)
        shape = jax.tree.leaves(jax.eval_shape(setup.task.init))[0].shape
        assert len(setup.source) > 0 and min(shape, default=1) > 0


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (Distributed("localhost", 2, 0), "coordinator"),
        (Distributed("localhost:", 2, 0), "coordinator"),
        (Distributed(":99", 2, 0), "coordinator"),
        (Distributed("localhost:0", 2, 0), "coordinator"),
        (Distributed("localhost:65536", 2, 0), "coordinator"),
        (Distributed("localhost:²", 2, 0), "coordinator"),
        (Distributed("localhost:99", 0, 0), "process-id"),
        (Distributed("localhost:99", 2, 2), "process-id"),
        (Distributed("localhost:99", 2, -1), "process-id"),
        (Distributed("localhost:99", -1, 0), "process-id"),
        (Distributed("localhost:99", 2, None), "process-id"),
    ],
)
def test_wrong_processes_are_refused_before_connecting(options, name):
    with pytest.raises(UserError, match=f"--distributed.*{name}"):
        connect(options)
