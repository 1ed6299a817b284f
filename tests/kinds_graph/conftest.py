"""One bench for all tests here."""

from pathlib import Path

import pytest

from .bench import Bench


@pytest.fixture(scope="session")
def bench(tiny_model: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tiny_model, tiny_bundle, tmp_path_factory.mktemp("kinds"))
