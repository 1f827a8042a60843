"""One thread: the tensors are tiny, and a test's numbers should not depend on how many cores a machine has."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def no_downloads(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test uses or fills the user's cache of models, and pip asks no index."""
    os.environ["FATHOM_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["PIP_NO_INDEX"] = "1"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
