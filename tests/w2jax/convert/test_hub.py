"""Models by their names on the Hugging Face hub, from a local server that speaks its protocol."""

import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import hub_server as server
import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from weights import FIXTURES, assert_same, tensors_of

from train.run.weights import load_run
from train.vit import main as train
from w2jax.convert import hub, load
from w2jax.convert.__main__ import main as convert
from w2jax.convert.hub import local_path, pinned

VIT, SHARDED = FIXTURES / "hf_vit", FIXTURES / "hf_model_sharded"
VIT_FILES = {"config.json", "model.safetensors"}


@pytest.fixture
def site(monkeypatch, tmp_path):
    """Returns a running hub with "a/vit", whose main branch is at commit 000…; the library's cache is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_found", {})
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with server.serving() as site:
        monkeypatch.setattr(constants, "ENDPOINT", site.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", site.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        site.add("a/vit", VIT)
        yield site


def same_tensors(name, fixture):
    """Asserts that a model of the hub has the tensors of a fixture, bit for bit."""
    assert_same(tensors_of(str(local_path(name))), tensors_of(fixture))


@pytest.mark.parametrize(
    ("name", "repo", "revision"),
    [
        ("google/vit-base-patch16-224", "google/vit-base-patch16-224", "main"),
        ("timm/vit_small_patch14_dinov2.lvd142m", "timm/vit_small_patch14_dinov2.lvd142m", "main"),
        ("hf-hub:timm/a@v1.0", "timm/a", "v1.0"),
        ("hf_hub:timm/a.pt", "timm/a.pt", "main"),
        ("facebook/dinov2-small@refs/pr/3", "facebook/dinov2-small", "refs/pr/3"),
    ],
)
def test_a_name_has_an_owner_and_may_have_a_prefix_and_a_revision(name, repo, revision, site):
    site.add(repo, {"model.npz": b"weights"}, branch=revision)
    assert local_path(name).read_bytes() == b"weights"
    assert ("GET", f"/api/models/{repo}/revision/{revision}") in site.log


@pytest.mark.parametrize(
    "path",
    [
        *("vit", "../x", "./a/b", "/a/b", "~/a", "a/b/c", "a//b", "a/", "a/..", "a/b..c", "a/b--c", "a/.b", "é/b"),
        *(
            "a/b.npz",
            "a/model.safetensors",
            "a/b.git",
            "a/b@",
            "a/b@../c",
            "a/b@x/../y",
            "a/b@/x",
            "a/b\n",
            "a/b\x1b[2J",
        ),
        *("https://huggingface.co/a/b", "C:\\a\\b", "a/" + "b" * 95, "a/b@" + "c" * 201, ""),
    ],
)
def test_any_other_text_is_a_path_and_never_sent_to_the_hub(path, site):
    if path:
        with pytest.raises(OSError, match="does not exist"):
            load(path)
    with pytest.raises(ValueError, match=r"must be OWNER/NAME or OWNER/NAME@REVISION, got hf-hub:") as error:
        load(f"hf-hub:{path.removesuffix('.npz').removesuffix('.safetensors')}@")
    assert str(error.value).isprintable() and not site.log


def test_the_files_that_are_read_are_downloaded_and_no_others(site):
    files = {name: (VIT / name).read_bytes() for name in VIT_FILES}
    others = ("pytorch_model.bin", "model.fp16.safetensors", "onnx/model.safetensors", "model.py", "optimizer.pkl")
    others += ("open_clip_model.safetensors", "tf_model.h5", "README.md", "../config.json", "onnx/config.json")
    site.add("a/many", files | dict.fromkeys(others, b"harmful") | {"preprocessor_config.json": b'{"size": 3}'})
    path = local_path("a/many")
    assert site.requested() == VIT_FILES | {"preprocessor_config.json"}
    assert {file.name for file in path.parent.iterdir()} == site.requested()
    assert (
        path == Path(constants.HF_HUB_CACHE) / "models--a--many" / "snapshots" / server.COMMITS[1] / "model.safetensors"
    )
    assert path.read_bytes() == files["model.safetensors"]
    assert path.with_name("preprocessor_config.json").read_bytes() == b'{"size": 3}'


def test_load_reads_the_model_with_its_config(site):
    """The config.json determines the number of heads."""
    module, variables = load("hf-hub:a/vit")
    expected, same = load(VIT)
    assert module == expected and module.num_heads == 3
    assert_same(variables, same)


def test_shards_are_downloaded_with_their_index(site):
    site.add("a/sharded", SHARDED)
    same_tensors("a/sharded", "hf_model_sharded")
    assert site.requested() == {file.name for file in SHARDED.iterdir()} - {"io.npz", "meta.json"}


def test_an_index_cannot_name_files_elsewhere(site):
    index = {"weight_map": {"cls": "../model.safetensors"}}
    site.add("a/bad", {"model.safetensors.index.json": json.dumps(index).encode()})
    with pytest.raises(
        ValueError, match=r"weight_map must name .safetensors files in the same folder, got '\.\./model"
    ):
        load("a/bad")
    site.add("a/lost", {"model.safetensors.index.json": b'{"weight_map": {"cls": "x.safetensors"}}'})
    with pytest.raises(OSError, match=r"a/lost@main does not exist here and cannot be downloaded: .*404"):
        load("a/lost")


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["open_clip_model.safetensors", "open_clip_pytorch_model.bin"], "open_clip_model.safetensors"),
        (["pytorch_model.bin", "B_16.npz", "x.h5"], "B_16.npz"),
        (["pytorch_model.bin", "a.safetensors", "b.safetensors"], "pytorch_model.bin"),
        (["model.safetensors", "model.safetensors.index.json", "a.npz"], "model.safetensors"),
        (["a.safetensors", "b.safetensors", "training_args.bin", "x/model.safetensors"], None),
    ],
)
def test_safe_formats_are_preferred_and_several_candidates_are_refused(names, chosen, site):
    site.add("a/some", dict.fromkeys(names, b""))
    if chosen is not None:
        assert local_path("a/some").name == chosen
        return
    with pytest.raises(
        ValueError, match=r"must have a file that w2jax reads: model\.safetensors.* Got a\.safetensors, b"
    ):
        local_path("a/some")


def test_a_model_with_only_a_torch_file_is_read_safely(site):
    state = {name: torch.from_numpy(np.array(array)) for name, array in tensors_of("hf_vit").items()}
    for repo, extra in (("a/bin", {}), ("a/harmful", {"x": pytest.raises})):
        file = io.BytesIO()
        torch.save(state | extra, file)
        site.add(repo, {"pytorch_model.bin": file.getvalue(), "config.json": (VIT / "config.json").read_bytes()})
    same_tensors("a/bin", "hf_vit")
    with pytest.raises(ValueError, match="must contain a dict of tensors by name"):
        load("a/harmful")


def test_a_revision_is_a_branch_a_tag_or_a_commit(site):
    first = site.refs["a/vit"]["main"]
    second = site.add("a/vit", {"model.safetensors": b"new", "config.json": b"{}"})
    site.add("a/vit", {"model.npz": b"other"}, branch="refs/pr/3")
    assert local_path("a/vit").read_bytes() == b"new"
    assert local_path(f"a/vit@{first}").read_bytes() == (VIT / "model.safetensors").read_bytes()
    assert local_path("a/vit@refs/pr/3").read_bytes() == b"other"
    assert (pinned("a/vit"), pinned("hf_hub:a/vit@main")) == (f"a/vit@{second}", f"hf_hub:a/vit@{second}")
    assert pinned(f"a/vit@{first}") == f"a/vit@{first}"
    with pytest.raises(FileNotFoundError, match=r"a/vit has no revision v9\. Choose a branch, tag or commit of http"):
        local_path("a/vit@v9")


def test_all_files_are_of_one_commit_if_the_branch_moves_during_the_download(site, monkeypatch):
    def download(*arguments, **options):
        path = original(*arguments, **options)
        site.add("a/vit", {"model.safetensors": b"new", "config.json": b"{}"})
        return path

    original = huggingface_hub.hf_hub_download
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    same_tensors("a/vit", "hf_vit")


def test_a_path_overrides_a_name(site, tmp_path):
    shutil.copytree(FIXTURES / "timm_clip", tmp_path / "a" / "vit")
    assert local_path("a/vit") == Path("a/vit") and pinned("a/vit") == "a/vit"
    with pytest.raises(FileNotFoundError, match="b/vit does not exist"):
        load(Path("b/vit"))  # a Path is never a name
    assert not site.log


def test_models_without_permission_are_refused_with_what_to_do(site, monkeypatch):
    site.add("a/private", VIT)
    site.add("a/gated", VIT)
    site.gated.add("a/gated")
    site.tokens["a/private"] = "secret"
    with pytest.raises(OSError, match=rf"a/gated needs .*Accept the conditions at {site.url}/a/gated and set HF_TOKEN"):
        load("a/gated")
    for name in ("a/private", "a/none"):
        with pytest.raises(
            FileNotFoundError, match=f"{name} does not exist, neither here nor .* set HF_TOKEN"
        ) as error:
            load(name)
        assert "\n" not in str(error.value)
    monkeypatch.setenv("HF_TOKEN", "secret")
    same_tensors("a/private", "hf_vit")


def test_the_cache_is_used_with_a_warning_if_the_hub_cannot_be_reached(site, monkeypatch, caplog):
    commit = pinned("a/vit").removeprefix("a/vit@")
    site.add("a/sharded", SHARDED)
    shard = local_path("a/sharded").with_name("model-00003-of-00004.safetensors")
    site.add("a/vit", {"model.safetensors": b"new"})
    hub._found.clear()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where no program listens
    with caplog.at_level(logging.WARNING, "w2jax"):
        same_tensors("a/vit", "hf_vit")
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("w2jax")]
    assert len(ours) == 1 and re.fullmatch(
        f"cannot ask the hub for a/vit: .*refused.* Using commit {commit} of the cache", ours[0]
    )
    assert pinned("a/sharded") == f"a/sharded@{server.COMMITS[1]}"
    shard.unlink()
    hub._found.clear()
    for name in ("a/sharded", "a/vit@v9", "b/vit"):
        with pytest.raises(OSError, match=f"{name}.* does not exist here and cannot be downloaded: .*refused") as error:
            load(name)
        assert "\n" not in str(error.value)


def test_the_hub_is_asked_once_for_a_commit(site):
    name = pinned("a/vit")
    requests = len(site.log)
    assert pinned(name) == name and local_path(name).is_file()
    assert len(site.log) == requests


def test_a_broken_download_is_never_read_and_the_next_one_completes_it(site, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between the library's attempts
    site.cuts += [50_000] * 20
    with pytest.raises(OSError, match=r"a/vit@main does not exist here and cannot be downloaded: .*(clos|broken)"):
        load("a/vit")
    assert hub._cached(Path(constants.HF_HUB_CACHE), "a/vit", "main") is None
    site.cuts.clear()
    same_tensors("a/vit", "hf_vit")


def test_an_error_of_the_librarys_faster_storage_is_one_line(site, monkeypatch):
    """hf_xet, which downloads large files, raises RuntimeErrors."""

    def fail(*_, **__):
        raise RuntimeError("CAS service error: \x1b[2Jno route\nmore")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(OSError, match=r"cannot be downloaded: CAS service error: \\x1b\[2Jno route\. Check") as error:
        load("a/vit")
    assert str(error.value).isprintable()


def test_an_answer_of_another_program_is_refused(site, monkeypatch):
    """Such as the login page of a wireless network."""
    monkeypatch.setattr(site, "login_page", b"<html>Log in</html>")
    with pytest.raises(OSError, match=r"a/vit@main does not exist here and cannot be downloaded: Expecting value"):
        load("a/vit")


def test_without_the_library_the_error_names_the_extra(site, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"a/vit does not exist here\. .* pip install huggingface_hub"):
        load("a/vit")


@pytest.mark.slow
def test_the_converter_reads_a_model_of_the_hub_and_prints_its_commit(site, capsys, tmp_path):
    commit = site.refs["a/vit"]["main"]
    assert convert(["a/vit", str(tmp_path / "out.safetensors"), "--format", "huggingface", "--check"]) == 0
    out = capsys.readouterr().out
    assert f"read        a/vit@{commit}: huggingface, " in out and "none differ" in out
    assert_same(load(tmp_path / "out.safetensors")[1], load(VIT)[1])
    assert convert(["a/none", str(tmp_path / "none.npz")]) == 2
    assert convert([str(tmp_path / "out.safetensors"), "a/vit", "--check"]) == 2  # DST is always a path
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert [line.partition(",")[0].partition(".")[0] for line in errors] == [
        "error: a/none does not exist",
        "error: a/vit does not exist",
    ]


@pytest.mark.slow
def test_a_program_reads_the_librarys_own_variables(site, tmp_path):
    def run(out, **variables):
        command = [sys.executable, "-m", "w2jax.convert", "a/vit", str(tmp_path / out)]
        root = str(Path(__file__).parents[3])
        env = {"HF_ENDPOINT": site.url, "HF_HUB_CACHE": constants.HF_HUB_CACHE, "PYTHONPATH": root}
        env = os.environ | env | variables
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)

    offline = run("a.npz", HF_HUB_OFFLINE="1")
    assert offline.returncode == 2 and len(offline.stderr.splitlines()) == 1
    assert re.match(
        r"error: a/vit@main does not exist here and is not in the cache .* Unset HF_HUB_OFFLINE", offline.stderr
    )
    online = run("b.npz")
    assert online.returncode == 0
    requests = len(site.log)
    offline = run("c.npz", HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stderr, len(site.log)) == (0, "", requests)
    assert offline.stdout == online.stdout.replace("b.npz", "c.npz")


@pytest.mark.slow
def test_a_run_starts_from_a_model_of_the_hub_and_keeps_its_commit(site, monkeypatch, capsys, tmp_path):
    commit = site.refs["a/vit"]["main"]
    arguments = ["vit", "tiny", "--init-from", "a/vit", "--run.dir", str(tmp_path / "run"), "--mesh.data", "1"]
    arguments += ["--data.train-split", "train[:40]", "--data.test-split", "test[:24]", "--run.batch-size", "8"]
    arguments += ["--data.image-size", "32", "32", "--run.save-every", "2", "--optim.learning-rate", "0"]
    monkeypatch.setattr("sys.argv", [*arguments, "--run.steps", "2"])
    train()
    assert f"initialized from a/vit@{commit} (huggingface): " in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "config.json").read_text())["init_from"] == f"a/vit@{commit}"
    _, variables, _ = load_run(tmp_path / "run")
    np.testing.assert_array_equal(variables["params"]["cls"], load(VIT)[1]["params"]["cls"])

    # The branch moves to another architecture. The run resumes from its own commit, a new run gets the new one.
    site.add("a/vit", FIXTURES / "hf_dinov2")
    hub._found.clear()
    monkeypatch.setattr("sys.argv", [*arguments, "--run.steps", "4", "--run.extend"])
    train()
    assert "Resumed from step 2 " in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "config.json").read_text())["init_from"] == f"a/vit@{commit}"
