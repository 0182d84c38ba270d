"""The command train.prepare: the files that it writes, its errors and its output."""

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from archives import COUNTS, mnist, mnist_folder
from image_files import classes, save

from configs.base import Data
from configs.vit import PRESETS
from train.config.cli import parse
from train.data import open_source
from train.data.locate import locate_dataset
from train.data.prepare.downloads import DOWNLOADS
from train.engine.init_from import resolve
from train.prepare import main
from train.process.errors import RunStopped, UserError

ROOT = Path(__file__).parents[4]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        DOWNLOADS, "mnist", replace(DOWNLOADS["mnist"], read=mnist, urls=("http://127.0.0.1:9/raw.gz",))
    )
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.parametrize("option", ["--data-dir", "--data.dir"])
def test_a_published_dataset_is_written_to_the_chosen_folder(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program prints the training command that uses it."""
    mnist_folder(tmp_path)
    data_dir = tmp_path / "new" / "data"
    main(["mnist", "--from", str(tmp_path), option, str(data_dir)])
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (f"wrote {data_dir}/mnist/3.0.1. To train on it: python -m train.vit mnist --data.dir {data_dir}")
    assert len(open_source(Data(name="mnist", dir=str(data_dir)), "train")) == COUNTS["train"]
    assert [path.name for path in data_dir.iterdir()] == ["mnist"]


def test_the_default_folder_is_used_and_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    mnist_folder(tmp_path)
    main(["mnist", "--from", str(tmp_path)])
    assert capsys.readouterr().out.endswith(". To train on it: python -m train.vit mnist\n")
    assert locate_dataset("mnist").parent.parent == tmp_path / "data"


def test_a_prepared_dataset_is_replaced_only_when_asked(tmp_path: Path) -> None:
    command = ["mnist", "--from", str(tmp_path), "--data-dir", str(tmp_path / "data")]
    mnist_folder(tmp_path)
    main(command)
    files = {path.name: path.read_bytes() for path in (tmp_path / "data/mnist/3.0.1").iterdir()}
    mnist_folder(tmp_path)
    with pytest.raises(UserError, match=r"dataset mnist is already prepared in .*3.0.1. Replace it with --overwrite"):
        main(command)
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "data/mnist/3.0.1").iterdir()}
    main([*command, "--overwrite"])
    assert files != {path.name: path.read_bytes() for path in (tmp_path / "data/mnist/3.0.1").iterdir()}
    assert files.keys() == {path.name for path in (tmp_path / "data/mnist/3.0.1").iterdir()}


def test_a_broken_raw_file_leaves_the_prepared_dataset_unchanged(tmp_path: Path) -> None:
    command = ["mnist", "--from", str(tmp_path), "--data-dir", str(tmp_path / "data"), "--overwrite"]
    mnist_folder(tmp_path)
    main(command)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte.gz must be an idx file of bytes, but it begins with"):
        main(command)
    assert len(open_source(Data(name="mnist", dir=str(tmp_path / "data")), "test")) == COUNTS["test"]


def test_without_a_network_the_download_stops_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # no server on this port
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        RunStopped, match=r"cannot be downloaded .*\. Download the raw files yourself and pass --from DIR"
    ):
        main(["mnist", "--data-dir", str(tmp_path / "data")])
    assert not (tmp_path / "data" / "mnist").exists()


def test_a_users_own_images_are_prepared_under_their_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes(tmp_path / "raw", {"cat": 6, "dog": 4})
    data_dir = str(tmp_path / "data")
    main(
        ["folder", "--from", str(tmp_path / "raw"), "--name", "pets", "--data-dir", data_dir, "--test-fraction", "0.5"]
    )
    printed = capsys.readouterr().out
    command = "python -m train.vit --data.name pets --data.image-size 56 56 --model.num-classes 2"  # 8 patches of 7
    place = f"--data.dir {data_dir}"
    *_, training, finetuning = printed.splitlines()
    assert training.endswith(f". To train on it: {command} {place}")
    assert finetuning == (
        f"To fine-tune pretrained weights on it: python -m train.vit --init-from WEIGHTS --data.name pets {place}"
    )
    weights = Path(__file__).parents[3] / "fixtures/predict/timm"
    arguments = shlex.split(finetuning.partition("train.vit ")[2].replace("WEIGHTS", str(weights)))
    config = parse("vit", PRESETS, arguments, resolve)
    assert (config.model.num_classes, config.data.image_size) == (2, (40, 40))
    source = open_source(Data(name="pets", dir=data_dir), "test")
    assert (len(source), source.label_names) == (5, ["cat", "dog"])


WEIRD = """my "data" of Zoë's $HOME"""  # the name of a folder


@pytest.mark.slow
def test_the_printed_training_command_runs_where_names_have_spaces_and_quotes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes(tmp_path / WEIRD, {"cat": 6, "dog": 4})
    main(["folder", "--from", str(tmp_path / WEIRD), "--name", "pets", "--data-dir", str(tmp_path / WEIRD / "data")])
    command = capsys.readouterr().out.partition(". To train on it: ")[2].splitlines()[0]
    (tmp_path / WEIRD / "here").mkdir()
    done = subprocess.run(
        ["bash", "-c", f"{command} --mesh.show"],
        **{"cwd": tmp_path / WEIRD / "here", "capture_output": True, "text": True},
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "") and "patch_embed" in done.stdout


def test_the_printed_prepare_command_prepares_where_training_looks(tmp_path: Path) -> None:
    data_dir = str(tmp_path / WEIRD)
    mnist_folder(tmp_path)
    with pytest.raises(UserError) as error:
        open_source(Data(name="mnist", dir=data_dir), "train")
    words = shlex.split(str(error.value).split("`")[1])
    assert words[:3] == ["python", "-m", "train.prepare"]
    main([*words[3:], "--from", str(tmp_path)])
    assert len(open_source(Data(name="mnist", dir=data_dir), "train")) == COUNTS["train"]


def test_the_folder_to_pass_is_quoted(tmp_path: Path) -> None:
    classes(tmp_path / "raw" / "all of them", {"cat": 6, "dog": 4})
    with pytest.raises(UserError) as error:
        main(["folder", "--from", str(tmp_path / "raw"), "--name", "pets", "--data-dir", str(tmp_path / "data")])
    inner = tmp_path / "raw" / "all of them"
    assert str(error.value).endswith(f"If the classes are in that folder, pass --from '{inner}'.")


def test_corrupt_images_are_refused_by_name_or_skipped_with_a_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes(tmp_path / "raw", {"cat": 6, "dog": 4})
    for name in ("cat/one.png", "dog/two.jpg"):
        (tmp_path / "raw" / name).write_text("text")
    (tmp_path / "raw/dog/notes.txt").write_text("text")
    command = ["folder", "--from", str(tmp_path / "raw"), "--name", "pets", "--data-dir", str(tmp_path / "data")]
    with pytest.raises(
        UserError, match=r"files that cannot be read as images: 2, .*cat/one.png .*dog/two.jpg .*--skip-corrupt"
    ):
        main(command)
    assert not (tmp_path / "data").exists()
    main([*command, "--skip-corrupt"])
    one, two, *table, bad, other, _, _ = capsys.readouterr().out.splitlines()
    assert one.startswith(f"skipped, cannot be read as an image: {tmp_path}/raw/cat/one.png")
    assert two.startswith(f"skipped, cannot be read as an image: {tmp_path}/raw/dog/two.jpg")
    assert [line.split() for line in table] == [
        ["class", "train", "test"],
        ["cat", "5", "1"],
        ["dog", "3", "1"],
        ["(all)", "8", "2"],
    ]
    assert bad == f"left out, cannot be read as an image: 1 .png, 1 .jpg, such as {tmp_path}/raw/cat/one.png"
    assert other == f"left out, not a format that is read: 1 .txt, such as {tmp_path}/raw/dog/notes.txt"
    splits = [open_source(Data(name="pets", dir=str(tmp_path / "data")), split) for split in ("train", "test")]
    assert sum(map(len, splits)) == 10


def test_the_folders_of_the_splits_and_equal_files_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes(tmp_path / "raw/train", {"cat": 2, "dog": 2})
    classes(tmp_path / "raw/val", {"cat": 2, "dog": 2})
    (tmp_path / "raw/val/cat/0.png").write_bytes((tmp_path / "raw/train/cat/1.png").read_bytes())
    main(["folder", "--from", str(tmp_path / "raw"), "--name", "pets", "--data-dir", str(tmp_path / "data")])
    train, test, *_, warning, _, _ = capsys.readouterr().out.splitlines()
    assert train == f"split train: the folder {tmp_path}/raw/train"
    assert test == f"split test: the folder {tmp_path}/raw/val"
    assert warning.startswith(
        "warning: images of test that are also in train: 1 of 4. The files have the same content, such "
    )


@pytest.mark.parametrize(("name", "version"), [("pets", "1.0.0"), ("mnist", "3.0.1")])
def test_training_would_read_what_is_written(name: str, version: str, tmp_path: Path) -> None:
    """Training reads the highest version, so a lower version cannot be written next to it."""
    (tmp_path / "raw").mkdir()
    if name == "mnist":
        mnist_folder(tmp_path / "raw")
        command = ["mnist", "--from", str(tmp_path / "raw")]
    else:
        classes(tmp_path / "raw", {"cat": 2, "dog": 2})
        command = ["folder", "--from", str(tmp_path / "raw"), "--name", "pets"]
    command += ["--data-dir", str(tmp_path / "data"), "--overwrite"]
    older, newer = tmp_path / "data" / name / "0.9.10", tmp_path / "data" / name / "10.0.0"
    for folder in (older, newer):
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text("{}")
    with pytest.raises(
        UserError, match=rf"{name} is also prepared in .*10\.0\.0, .* writes version {version}\. Remove"
    ):
        main(command)
    assert not (tmp_path / "data" / name / version).exists()
    shutil.rmtree(newer)
    main(command)
    assert locate_dataset(name, str(tmp_path / "data")).name == version


@pytest.mark.parametrize(("other", "words"), [((14, 21), ""), ((9, 11), " --data.image-size 56 56")])
def test_the_printed_command_resizes_only_where_necessary(
    other: tuple[int, int], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """This is so if images differ in size or patches do not divide them."""
    for name in (f"{number}" for number in range(10)):  # the preset's number of classes
        for file in ("a", "b"):
            save(tmp_path / "raw" / name / f"{file}.png", size=(14, 21))
    save(tmp_path / "raw/3/other.png", size=other)
    main(["folder", "--from", str(tmp_path / "raw"), "--name", "pets", "--data-dir", str(tmp_path / "data")])
    training, _ = capsys.readouterr().out.splitlines()[-2:]
    assert training.endswith(f"python -m train.vit --data.name pets{words} --data.dir {tmp_path / 'data'}")


@pytest.mark.parametrize(
    "name", ["Pets", "my-pets", "../pets", "2pets", "", "mnist", "cifar10", "mnist_sample", "folder"]
)
def test_an_invalid_or_existing_name_is_refused(tmp_path: Path, name: str) -> None:
    classes(tmp_path / "raw", {"cat": 2, "dog": 2})
    with pytest.raises(UserError, match=r"--name must be lower-case letters, .*, got"):
        main(["folder", "--from", str(tmp_path / "raw"), "--name", name, "--data-dir", str(tmp_path / "data")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mnits"], r"got 'mnits'. Did you mean mnist\?"),
        (["xyzzy"], r"got 'xyzzy'. Prepare your own images with `folder`"),
        (["mnist", "--fro", "x"], r"--fro"),
        (["folder", "--from", "."], r"--name"),
        (["folder", "--from", ".", "--name", "pets", "--seed", "two"], r"--seed"),
    ],
)
def test_an_error_on_the_command_line_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "shown"), [(["--help"], "cifar100"), ([], "folder"), (["folder", "-h"], "--skip-corrupt")]
)
def test_help_names_what_can_be_prepared_and_how(
    arguments: list[str], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        main(arguments)
    except SystemExit as end:
        assert end.code == 0
    assert shown in capsys.readouterr().out


def test_a_file_instead_of_the_data_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--data-dir must be a folder, got the file"):
        main(["mnist", "--data-dir", str(tmp_path / "file")])
