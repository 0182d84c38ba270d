import dataclasses
import json
import signal
from pathlib import Path

from configs.base import Mesh
from configs.vit import PRESETS


def small(folder, **data_options):
    tiny = PRESETS["tiny"].config
    return dataclasses.replace(
        tiny,
        model=tiny.model.clone(embed_dim=8, mlp_dim=8, depth=1),
        data=dataclasses.replace(tiny.data, train_split="train[:40]", test_split="test[:24]", **data_options),
        run=dataclasses.replace(tiny.run, steps=5, batch_size=10, log_every=2, eval_every=3, dir=str(folder)),
        mesh=Mesh(1, 1, 1),
    )


def lines(config, name="metrics"):
    return [json.loads(line) for line in Path(config.run.dir, f"{name}.jsonl").read_text().splitlines()]


def with_run(config, folder, **options):
    return dataclasses.replace(config, run=dataclasses.replace(config.run, dir=str(folder), **options))


def interrupted_at(monkeypatch, moment, number):
    """Sends signal `number` to this process: ("step", n) when step n is counted, ("test", n) in the n-th test."""
    from train.engine import evaluator, publisher

    tests = 0

    class Console(publisher.RunConsole):
        def step(self, step):
            if moment == ("step", step):
                signal.raise_signal(number)
            super().step(step)

    def eval_batches(*arguments, before=evaluator.eval_batches):
        nonlocal tests
        for i, batch in enumerate(before(*arguments)):
            yield batch
            tests += i == 0  # after the first batch, because the report reads only one batch
            if moment == ("test", tests):
                signal.raise_signal(number)

    monkeypatch.setattr(publisher, "RunConsole", Console)
    monkeypatch.setattr(evaluator, "eval_batches", eval_batches)
