"""Prepared datasets that the tests read."""

from pathlib import Path

import pytest
from tiny import prepare

from configs.base import Data


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_dir = tmp_path_factory.mktemp("prepared")
    prepare(data_dir)
    return data_dir


@pytest.fixture
def tiny(tiny_dir: Path) -> Data:
    """Config of the small dataset."""
    return Data(name="tiny", dir=str(tiny_dir))


@pytest.fixture(scope="session")
def broken_label(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Config of the dataset with one label 99, which its features no longer allow."""
    data_dir = tmp_path_factory.mktemp("wrong")
    features = prepare(data_dir, "wrong", labels={17: 99}) / "features.json"
    features.write_text(features.read_text().replace('"100"', '"4"'))
    return Data(name="wrong", dir=str(data_dir))
