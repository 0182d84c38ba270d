"""The learning rate in a report equals that of the optimizer."""

import dataclasses

import pytest

import configs.aae
import configs.base
from train.config.tree import config_to_tree
from train.engine.optim import make_schedule
from train.report.schedule import learning_rates


def test_the_learning_rate_is_that_of_the_optimizer():
    for warmup, final, steps in ((0.05, 0.01, 400), (0.0, 0.5, 7), (0.29, 0.0, 100), (0.99, 1.0, 3)):
        optim = configs.base.AdamW(3e-3, warmup, final)
        (rows,) = learning_rates({"optim": dataclasses.asdict(optim), "run": {"steps": steps}}, steps).values()
        schedule = make_schedule(optim, steps)
        assert rows[0]["step"] == 1 and rows[-1]["step"] == steps
        for row in rows:
            assert row["learning_rate"] == pytest.approx(float(schedule(row["step"] - 1)), rel=1e-5, abs=1e-9)


def test_an_extended_run_has_the_learning_rate_of_each_part():
    optim = configs.base.AdamW(1e-3, 0.1, 0.0)
    tree = {"optim": dataclasses.asdict(optim), "run": {"steps": 90}, "extensions": [{"steps": 40, "done": 30}]}
    (rows,) = learning_rates(tree, 90).values()
    rates = {row["step"]: row["learning_rate"] for row in rows}
    for step, planned in ((30, 40), (31, 90), (90, 90)):
        assert rates[step] == pytest.approx(float(make_schedule(optim, planned)(step - 1)), rel=1e-5, abs=1e-9)


def test_each_optimizer_has_its_learning_rate_and_a_wrong_config_has_none():
    tree = config_to_tree(configs.aae.PRESETS["tiny"].config)
    assert list(learning_rates(tree, 10)) == ["reconstruction", "discriminator", "generator", "classification"]
    for broken in ({}, {"run": 3, "optim": []}, tree | {"run": {"steps": "9"}}, tree | {"optim": {"a": {"b": 1}}}):
        assert learning_rates(broken, 10) == {}
