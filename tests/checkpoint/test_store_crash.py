"""Killed or out of disk at every single moment of a save: the old checkpoint is there or the new one, always whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from store_worlds import pieces, quiet_stores, save_all, state, zero_cuts

from fathom.checkpoint import store_commit
from fathom.checkpoint.store import Store
from fathom.runtime import UserError

KILLS = ["1:0:kill", "2:0:kill", "2:1:kill"]
FULL = ["1:0:full", "2:1:full", "2:1:limit"]


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What store_lives.py reports; it has loaded every checkpoint that was left and found it exact."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("store_lives.py")), str(tmp_path_factory.mktemp("lives")),
         *KILLS, *FULL],
        capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("case", KILLS)
def test_killed_at_every_moment(lives: list[dict[str, Any]], case: str) -> None:
    size, victim = map(int, case.split(":")[:2])
    own = [life for life in lives if life["case"] == case]
    assert len(own) > 10 and own[-1]["codes"] == [0] * size
    for life in own[:-1]:
        assert life["codes"][victim] == -9 and life["left"] in ([1], [1, 2], [2]), life
        others = {code for rank, code in enumerate(life["codes"]) if rank != victim}
        assert others <= ({0} if 2 in life["left"] else {2}), life  # they know what became of it
        assert life["after"] == ["step-00000003"], life  # leftovers are gone after the next save
    came = [2 in life["left"] for life in own]
    assert came == sorted(came) and not came[0] and came[-1]
    if victim == 0:
        assert any(life["left"] == [1, 2] for life in own)  # between the new one and the end of the old one


@pytest.mark.parametrize("case", FULL)
def test_disk_full_at_every_moment(lives: list[dict[str, Any]], case: str) -> None:
    """Either it was saved, or every rank has one line that says what to do, and nothing half-written is left."""
    size = int(case[0])
    own = [life for life in lives if life["case"] == case]
    assert own[0]["codes"] == [2] * size and own[-1]["codes"] == [0] * size
    for life in own:
        if 2 in life["codes"]:
            assert life["codes"] == [2] * size and life["left"] == [1] and life["names"] == ["step-00000001"], life
            assert len(life["errors"]) == size and all("\n" not in error for error in life["errors"])
            assert all("step-00000002" in error and "free some space" in error for error in life["errors"]), life
        else:
            assert life["left"] == [2] and life["names"] == ["step-00000002"], life
        assert life["after"] == ["step-00000003"], life


def test_all_is_on_the_disk_before_the_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a machine that loses its power, which no test can kill: each file, then the folder, then its name."""
    flushed: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted(descriptor: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        flushed.append(f"rename to {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "rename", renamed)
    Store(tmp_path / "out", None, keep=1).save(1, pieces({"x": torch.ones(3)}, [("x", 0, 3)]), {}, wait=True)
    now = flushed.index("rename to step-00000001")
    for start in ("rank-00000.safetensors", ".rank-00000.json", ".index.json", ".step-00000001"):
        assert any(name.startswith(start) for name in flushed[:now]), (start, flushed)
    assert flushed[now - 1].startswith(".step-00000001") and flushed[now + 1] == "out"


def test_the_error_comes_with_the_next_call_and_training_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts, whole = zero_cuts(2, 0), state(1)
    stores = quiet_stores(tmp_path, 2)
    save_all(stores, 1, [pieces(whole, own) for own in cuts])
    with monkeypatch.context() as patch:
        patch.setattr("fathom.runtime.disk_free", lambda path: 1000)
        for store, own in zip(stores, cuts, strict=True):
            store.save(2, pieces(whole, own), {})  # returns: the thread finds out
        for store in stores:
            store._thread.join()  # type: ignore[union-attr]
    for store, own in zip(stores, cuts, strict=True):
        with pytest.raises(UserError, match=r"rank 0: .*are free; free some space"):
            store.save(3, pieces(whole, own), {})
        store.wait()  # said once
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    save_all(stores, 3, [pieces(whole, own) for own in cuts])
    assert stores[1].steps() == [1, 3]


def test_a_mistake_in_the_program_is_told_to_all_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(rank: int) -> Any:
        raise ZeroDivisionError("nobody expects this")

    monkeypatch.setattr("fathom.checkpoint.store_format.part_name", broken)
    stores = quiet_stores(tmp_path, 2)
    for store, own in zip(stores, zero_cuts(2, 0), strict=True):
        store.save(1, pieces(state(1), own), {})
    for store in stores:
        with pytest.raises(UserError, match="rank 1: ZeroDivisionError: nobody") as error:
            store.wait()
        assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_a_rank_that_comes_too_late_harms_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was given up, writes all the same, and finds that nobody waits; the next save is complete."""
    monkeypatch.setattr(store_commit, "FAREWELL", 0.1)
    cuts, whole = zero_cuts(2, 0), state(1)
    first, late = quiet_stores(tmp_path, 2, patience=0.3)
    first.save(1, pieces(whole, cuts[0]), {})
    with pytest.raises(UserError, match=r"rank 1: wrote nothing for 0.3 s"):
        first.wait()
    late.save(1, pieces(whole, cuts[1]), {})
    with pytest.raises(UserError, match="rank 0 did not complete it"):
        late.wait()
    first.patience = late.patience = 20.0
    save_all([first, late], 2, [pieces(whole, own) for own in cuts])
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_leftovers_of_others_are_not_touched_by_reading(tmp_path: Path) -> None:
    (tmp_path / ".step-00000001.0000ff-1.tmp").mkdir()
    store = Store(tmp_path, None, keep=1)
    assert store.steps() == [] and len(list(tmp_path.iterdir())) == 1
    store.save(2, pieces({"x": torch.ones(3)}, [("x", 0, 3)]), {}, wait=True)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
