"""The command train.dryrun: its report of a small task on simulated devices, its verdict, and its errors."""

import json
import math
import re

import pytest

from train.dryrun.__main__ import largest_that_fits, main
from train.dryrun.hlo import Collectives, Counts
from train.dryrun.report import refused, roofline, rows
from train.dryrun.target import CHIPS
from train.process.errors import UserError

TINY = [
    *["vit", "tiny", "--topology", "cpu:2", "--run.batch-size", "12", "--model.depth", "1", "--model.patch-size", "14"],
    *["--model.embed-dim", "8", "--model.mlp-dim", "12"],
]


def test_the_report_of_a_tiny_task_agrees_with_arithmetic(capsys):
    assert main([*TINY, "--json", "-"]) == 0
    out, table = capsys.readouterr()
    report = json.loads(out)
    batch, patches, pixels, width, mlp, classes = 12, 4, 14 * 14, 8, 12, 10
    tokens = patches + 1
    block = 4 * (width * width + width) + 2 * width * mlp + mlp + width + 4 * width
    parameters = (pixels + 1) * width + width + tokens * width + block + 2 * width + (width + 1) * classes
    assert (report["task"], report["preset"], report["topology"], report["chips"]) == ("vit", "tiny", "cpu:2", 2)
    assert report["mesh"] == {"data": 2, "fsdp": 1, "tensor": 1} and report["batch_size"] == batch
    assert report["parameters"] == parameters
    # Parameters and Adam's two moments, three counters, and half of the images as bytes with their labels.
    assert report["memory"]["arguments"] == 3 * 4 * parameters + 3 * 4 + batch // 2 * (28 * 28 + 4)
    assert report["fits"] and report["memory"]["limit"] is None and "roofline" not in report
    embed = 2 * patches * pixels * width
    products = 2 * tokens * (4 * width**2 + 2 * tokens * width + 2 * width * mlp) + 2 * width * classes
    # In the backward pass each product becomes two, except the first, because the images need no gradient.
    assert report["model_flops"] == batch / 2 * (2 * embed + 3 * products)
    assert report["flops"] == pytest.approx(report["model_flops"], rel=0.05)
    (sums,) = report["collectives"].values()
    assert sums["bytes"] == pytest.approx(4 * parameters, rel=0.02)  # the gradients
    assert f"{parameters:,}" in table
    assert dict(rows(report))["chips"].startswith("2: data 2")
    assert dict(rows(report | {"topology": "v7x:1x1x1"}))["chips"].startswith("2 halves: data 2")


def test_a_step_that_is_too_large_is_reported_with_advice_and_status_1(capsys):
    assert main([*TINY, "--hbm", "1e-5"]) == 1
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert re.search(r"of 10.5 KiB: does not fit, [\d.]+ [KM]iB too much", text)
    assert "--optim.accumulate 2 --run.batch-size 6" in text and "--mesh.fsdp -1 --mesh.data 1" in text


@pytest.mark.parametrize("most", [0, 1, 2, 7, 8, 9, 63, 64, 100])
@pytest.mark.parametrize("start", [1, 8, 24])
def test_the_search_ends_near_the_largest_that_fits(start, most):
    asked = []
    low, high = largest_that_fits(lambda n: asked.append(n) or n <= most, start, tries=20)
    assert low <= most < high and high - low <= max(most // 16, 1)
    assert len(set(asked)) == len(asked) <= 2 * math.ceil(math.log2(max(most, start) + 1)) + 2


def test_a_search_that_runs_out_of_tries_keeps_its_best_result():
    assert largest_that_fits(lambda n: n <= 1000, 1, tries=4) == (8, None)
    assert largest_that_fits(lambda n: n <= 1000, 500, tries=4) == (1000, 1500)


def test_both_forms_of_the_compilers_out_of_memory_error_are_read():
    new = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (20.00G) "
    new += "exceeds available HBM (15.75G)."
    old = """RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 63.80G of 30.75G hbm. Exceeded by 33.05G.

  Largest program allocations in hbm:

  1. Size: 2.00G
     Operator: op_name="jit(step)/dot_general" source_file="a.py" source_line=9
     Shape: f32[32,4096,4096]{1,2,0:T(8,128)}
     Unpadded size: 2.00G
     ==========================

  2. Size: 512.5M
     Shape: bf16[7,5]{1,0}
     Unpadded size: 512.5M
"""
    assert refused(new) == {"total": 20 * 2**30, "limit": 15.75 * 2**30, "largest": []}
    assert refused(old)["total"] == round(63.8 * 2**30)
    assert refused(old)["largest"] == [
        {"bytes": 2 * 2**30, "shape": "f32[32,4096,4096]", "of": "jit(step)/dot_general"},
        {"bytes": 512.5 * 2**20, "shape": "bf16[7,5]", "of": ""},
    ]


@pytest.mark.parametrize(
    ("flops", "traffic", "sent", "bound", "seconds"),
    [(197e9, 1e6, 1e6, "compute", 1e-3), (1e9, 819e7, 1e6, "memory", 1e-2), (1e9, 1e6, 400e6, "interconnect", 2e-3)],
)
def test_the_busiest_resource_bounds_a_step(flops, traffic, sent, bound, seconds):
    counts = Counts(flops, {"model": traffic}, {"all-gather": Collectives(2, 3 * sent, sent)})
    line = roofline(counts, flops / 2, 300, CHIPS["v5e"])
    assert (line["bound"], line["step_seconds"]) == (bound, pytest.approx(seconds))
    assert line["images_per_second"] == pytest.approx(300 / seconds)
    assert line["mfu"] == pytest.approx(flops / 2 / (197e12 * seconds))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vitt", "--topology", "cpu:2"], 'there is no task "vitt". Did you mean "vit"?'),
        (["vit", "--topology", "v9:2x2"], "--topology must have a form such as v5e:2x2"),
        (["vit", "--topology", "v5e"], "--topology must have a form such as v5e:2x2"),
        (["vit", "--topology", "cpu"], "--topology must have a form such as v5e:2x2"),
        (["vit", "--topology", "v5p:2x2"], "--topology must have 3 dimensions for v5p, got 'v5p:2x2'"),
        (["vit", "--topology", "v5e:32x16"], "--topology must have at most 256 chips in a slice of v5e, got 512"),
        (
            ["vit", "--topology", "cpu:2", "--slices", "2"],
            "--slices must be at least 1 for a TPU, and 1 for other devices, got 2",
        ),
        (
            ["vit", "--topology", "cpu:2", "--search"],
            "--search needs a memory limit, but the memory of cpu:2 is unknown. Set --hbm",
        ),
        (["vit", "--topology", "cpu:3", "--mesh.data", "2", "--mesh.fsdp", "-2"], "mesh sizes must be positive"),
        (["vit", "tiny", "--topology", "cpu:3"], "--run.batch-size must be divisible by 3 (devices)"),
        (["vit", "tinny", "--topology", "cpu:2"], 'Did you mean "tiny"?'),
        (["vit", "tiny", "--topology", "cpu:2", "--run.stepz", "3"], 'Did you mean "--run.steps"?'),
        (["vit", "--topology", "cpu:2", "--data.name", "nowhere"], "nowhere"),
        (["vit"], "--topology"),
    ],
)
def test_an_error_is_one_line(arguments, message):
    with pytest.raises(UserError) as error:
        main(arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
