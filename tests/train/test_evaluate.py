"""`train.report --checkpoint` evaluates a checkpoint again: its numbers are those of the training's own evaluation."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import lines, small, with_run

from train.engine.loop import fit
from train.evaluate import evaluate
from train.process.errors import UserError
from train.report.__main__ import main as report
from train.report.mistakes import read_mistakes
from train.report.pictures import read_pictures
from train.run.folder import read_image_info
from train.vit import make_task


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    config = with_run(small(folder, workers=0), folder, steps=4, save_every=1, eval_every=1)
    fit(config, make_task)
    return config


def contents(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_checkpoint_has_the_metrics_of_its_row_and_the_pictures_of_its_parameters(run, tmp_path):
    before = contents(run.run.dir)
    rows = {line["step"]: line for line in lines(run) if line["split"] == "test"}
    for step in (3, 4):
        out = tmp_path / str(step)
        out.mkdir()
        found = evaluate(Path(run.run.dir), str(step), out)
        assert found.note == f"the parameters of step {step}"
        assert found.metrics == {
            name: pytest.approx(value, rel=1e-5) for name, value in rows[step].items() if name not in ("step", "split")
        }
    assert read_mistakes(tmp_path / "4") == read_mistakes(Path(run.run.dir)) != read_mistakes(tmp_path / "3")
    assert read_image_info(tmp_path / "4") == read_image_info(Path(run.run.dir))
    name = next(iter(read_pictures(tmp_path / "4")))
    picture, same, other = (
        np.asarray(Image.open(place / "pictures" / f"{name}.png"), np.int32)
        for place in (Path(run.run.dir), tmp_path / "4", tmp_path / "3")
    )
    np.testing.assert_allclose(same, picture, atol=1)  # Another program may round a pixel differently.
    assert abs(other - picture).sum() > 2 * abs(same - picture).sum()
    assert contents(run.run.dir) == before


def test_the_page_names_the_checkpoint_and_has_its_results(run, tmp_path):
    row = next(line for line in lines(run) if (line["step"], line["split"]) == (3, "test"))
    report([run.run.dir, "--checkpoint", "3"])
    page = Path(run.run.dir, "report-3.html").read_text()
    assert "Results, mistakes and pictures of the parameters of step 3:" in page
    assert re.search(rf"test loss<td>{row['loss']:.4f}<", page)
    report([run.run.dir, "--checkpoint", "best", "--out", str(tmp_path / "page.html")])
    assert re.search(r"the parameters of step \d \(best accuracy, ", (tmp_path / "page.html").read_text())


def test_another_split_is_evaluated_on_its_own_images(run, tmp_path):
    report([run.run.dir, "--checkpoint", "last", "--split", "train[:24]"])
    page = Path(run.run.dir, "report-last-train-24.html").read_text()
    assert "Results, mistakes and pictures of the parameters of step 4, on split train[:24]:" in page
    trained = evaluate(Path(run.run.dir), "last", tmp_path, "train[:24]").metrics
    assert trained["loss"] != evaluate(Path(run.run.dir), "last", tmp_path).metrics["loss"]
    same = evaluate(Path(run.run.dir), "last", tmp_path, run.data.test_split)
    assert same.metrics == evaluate(Path(run.run.dir), "last", tmp_path).metrics
    assert f"test loss<td>{trained['loss']:.4f}<" in page


def test_what_cannot_be_evaluated_is_refused(run, tmp_path):
    with pytest.raises(UserError, match=r"^--checkpoint must be last, best or a step, got '\.\./x'$"):
        report([run.run.dir, "--checkpoint", "../x"])
    with pytest.raises(UserError, match=r"^--checkpoint must be used with one RUN_DIR, got 2\. Pass one$"):
        report([run.run.dir, run.run.dir, "--checkpoint", "best"])
    with pytest.raises(UserError, match=r"^--split must be used with --checkpoint\. Add for example"):
        report([run.run.dir, "--split", "test"])
    images = Path(run.run.dir, "images.json")
    text = images.read_text()
    content = json.loads(text)
    content["fingerprints"]["test"] = "other"
    images.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"^the dataset is not the one that the run in .* the examples of test changed"):
        evaluate(Path(run.run.dir), "last", tmp_path)
    images.write_text(text)
