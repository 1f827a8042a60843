"""One uninterrupted tiny run, made once; and a process-wide setting of the trainer put back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_run import make_config, make_trainer
from tiny_workshop import Workshop

from fathom.text.bpe import train_bpe


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny run, done in one go."""
    out = tmp_path_factory.mktemp("whole") / "run"
    torch.set_num_threads(1)
    make_trainer(make_config(out)).train()
    return out


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(
        ["the little fish swims in the deep sea and the little bird sings in the tall tree all day long. " * 3] * 20,
        320,
        folder,
    )
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Workshop:
    """Both runs, finished."""
    workshop = Workshop(tmp_path_factory.mktemp("done") / "w", tokenizer_folder)
    assert workshop.train("pretrain") == 0
    assert workshop.train("sft") == 0
    return workshop


@pytest.fixture
def workshop(tmp_path: Path, tokenizer_folder: Path) -> Workshop:
    return Workshop(tmp_path / "w", tokenizer_folder)
