"""A dataset is found by name; for a missing one, the error quickly says what to do."""

import json
import pwd
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import prepare

from train.data.dataset_info import read_dataset_info
from train.data.locate import locate_dataset
from train.process.errors import UserError
from train.process.home import user_cache


def test_a_missing_dataset_is_reported_within_two_seconds_without_tfds(tmp_path: Path) -> None:
    program = (
        "import sys; from configs.base import Data; from train.data import open_source"
        "\nfrom train.process.errors import UserError"
        "\ntry: open_source(Data(name='mnist', dir=sys.argv[1]), 'train')"
        "\nexcept UserError as error: print(error)"
        "\nprint([name for name in ('tensorflow_datasets', 'grain', 'jax') if name in sys.modules])"
    )
    start = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=Path(__file__).parents[3],
    )
    assert time.monotonic() - start < 2
    message, imported = run.stdout.splitlines()
    assert f"`python -m train.prepare mnist --data-dir {tmp_path}`" in message
    assert imported == "[]"


def test_the_command_omits_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"none \(this folder does not exist\). Run `python -m train.prepare cifar10`"):
        locate_dataset("cifar10")


def test_the_folder_is_the_one_given_then_the_environments_then_the_homes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = {key: tmp_path / key for key in ("given", "environment", "home/tensorflow_datasets")}
    prepared = {key: prepare(folder) for key, folder in homes.items()}
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(homes["environment"]))
    assert locate_dataset("tiny", str(homes["given"])) == prepared["given"]
    assert locate_dataset("tiny") == prepared["environment"]
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert locate_dataset("tiny") == prepared["home/tensorflow_datasets"]


@pytest.mark.parametrize(("name", "near"), [("tinny", "tiny"), ("fashon_mnist", "fashion_mnist"), ("cifar", "cifar10")])
def test_an_unknown_dataset_is_refused_with_the_nearest_name(tiny_dir: Path, name: str, near: str) -> None:
    """The nearest among datasets that are prepared or can be prepared."""
    with pytest.raises(UserError, match=rf"there is no dataset {name} in .*\. Did you mean .*\b{near}\b"):
        locate_dataset(name, str(tiny_dir))


def test_for_an_unknown_name_without_a_near_one_all_are_listed(tiny_dir: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"Known datasets are cifar10, cifar100, fashion_mnist, mnist, mnist_sample, tiny\. .*--data.dir",
    ):
        locate_dataset("xyzzy", str(tiny_dir))


def test_the_highest_version_wins_by_number(tmp_path: Path) -> None:
    for version in ("9.0.0", "10.0.0", "10.0.0.incomplete"):
        shutil.copytree(prepare(tmp_path / "one"), tmp_path / "many" / "tiny" / version)
    assert locate_dataset("tiny", str(tmp_path / "many")).name == "10.0.0"


def test_a_config_is_named_after_the_dataset(tmp_path: Path) -> None:
    for config in ("blue", "red"):
        shutil.copytree(prepare(tmp_path / "one"), tmp_path / "many" / "tiny" / config / "1.0.0")
    assert locate_dataset("tiny/red", str(tmp_path / "many")) == tmp_path / "many" / "tiny" / "red" / "1.0.0"
    with pytest.raises(UserError, match=r"has configs. Choose one with --data.name tiny/blue or tiny/red"):
        locate_dataset("tiny", str(tmp_path / "many"))


@pytest.mark.parametrize("name", ["../tiny", "tiny/..", "tiny/../tiny", "/tiny", "", "..", "tiny/a/b", "tiny\n"])
def test_a_name_cannot_leave_the_folder(tiny_dir: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"--data.name must be a dataset's name"):
        locate_dataset(name, str(tiny_dir))


def test_a_dataset_without_random_access_is_refused(tmp_path: Path) -> None:
    """The error says how to write the dataset again."""
    for name, command in (
        ("mnist", "python -m train.prepare mnist --data-dir .* --overwrite"),
        ("flowers", "tfds build"),
    ):
        info = prepare(tmp_path, name) / "dataset_info.json"
        content = json.loads(info.read_text())
        for form in ("tfrecord", None):  # Old datasets do not contain their file format.
            content.pop("fileFormat") if form is None else content.update(fileFormat=form)
            info.write_text(json.dumps(content))
            with pytest.raises(UserError, match=f"must be stored as array_record, got tfrecord. Run `{command}"):
                read_dataset_info(name, str(tmp_path))


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_a_damaged_description_is_named(tmp_path: Path, file: str) -> None:
    path = prepare(tmp_path) / file
    path.write_text(path.read_text()[:50])
    with pytest.raises(UserError, match=rf"{file} cannot be read .*\. Prepare the dataset again"):
        read_dataset_info("tiny", str(tmp_path))


def test_a_file_instead_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--data.dir must be a folder of prepared datasets, got the file"):
        locate_dataset("mnist", str(tmp_path / "file"))


def test_the_bundled_sample_needs_no_folder_but_a_wrong_one_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    assert locate_dataset("mnist_sample") == locate_dataset("mnist_sample", str(tmp_path))
    with pytest.raises(UserError, match=r"the folder .*none does not exist. .* mnist_sample is bundled"):
        locate_dataset("mnist_sample", str(tmp_path / "none"))


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this user one without an entry in the password database, as in a container with an arbitrary user id."""

    def unknown(_: object) -> None:
        raise KeyError

    for name in ("HOME", "TFDS_DATA_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_a_user_without_a_home_can_use_the_bundled_sample_and_must_name_other_folders(
    homeless: None, tmp_path: Path
) -> None:
    assert locate_dataset("mnist_sample").parent.name == "mnist_sample"
    with pytest.raises(UserError, match=r"~/tensorflow_datasets, but this user has no such home\. Pass --data\.dir"):
        locate_dataset("mnist")
    with pytest.raises(UserError, match=r"dataset mnist is not prepared in .* --data-dir "):
        locate_dataset("mnist", str(tmp_path))
    assert user_cache() is None
