"""The store of training checkpoints: what is saved in any layout is loaded in any other, bit for bit."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parallel.distributed import run
from safetensors.torch import load_file
from store_worlds import (
    CUTS,
    SHAPES,
    Cut,
    Quiet,
    blank,
    differing,
    expert_cuts,
    pieces,
    quiet_stores,
    save_all,
    save_and_load,
    state,
)  # fmt: skip

from fathom.checkpoint import store as store_module
from fathom.checkpoint import store_format, store_reader
from fathom.checkpoint.store import Store, read_whole
from fathom.parallel.piece import Piece
from fathom.runtime import UserError

ALONE: list[Cut] = [(name, 0, torch.Size(shape).numel()) for name, (_, shape) in SHAPES.items()]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small tensors have several checksums."""
    monkeypatch.setattr(store_format, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(store_reader, "CHUNK_BYTES", 1000)


def saved(folder: Path, *steps: int, **options: Any) -> Store:
    store = Store(folder, None, **({"keep": 9} | options))
    for step in steps:
        store.save(step, pieces(state(step), ALONE), {"step": step}, wait=True)
    return store


def test_each_layout_loads_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1, 2 and 4 processes, cut as ZeRO and as experts: each writes, each reads what the others wrote."""
    monkeypatch.undo()
    whole, checked = state(0), {}
    store = Store(tmp_path / "1", None, keep=1)
    store.save(3, pieces(whole, ALONE), {"by": 1}, wait=True)
    worlds = ["1"]
    for size in (2, 4, 2):  # the second time, 2 read what 4 wrote
        for rank, end in run(size, save_and_load, str(tmp_path), worlds, folder=tmp_path).items():
            assert end.code == 0, end.err
            checked |= {f"{what} rank {rank}": result for what, result in end.value.items()}
        worlds = [path.name for path in tmp_path.iterdir() if path.is_dir()]
    assert {what for what, (wrong, _) in checked.items() if wrong} == set()
    assert {extra["by"] for _, extra in checked.values()} == {1, 2, 4}
    for world in worlds:
        target = blank(ALONE)
        Store(tmp_path / world, None, keep=1).load(3, target)
        assert differing(target, whole) == []
        assert all(torch.equal(t, whole[n]) for n, t in read_whole(tmp_path / world / "step-00000003"))


@st.composite
def any_cuts(draw: st.DrawFn) -> list[list[Cut]]:
    """Every tensor cut anywhere, and the parts dealt out to up to four ranks."""
    ranks: list[list[Cut]] = [[] for _ in range(draw(st.integers(1, 4)))]
    for name, (_, shape) in SHAPES.items():
        n = torch.Size(shape).numel()
        bounds = sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=4))})
        for start, end in zip(bounds, bounds[1:] if n else [0], strict=False):
            ranks[draw(st.integers(0, len(ranks) - 1))].append((name, start, end))
    return ranks


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(any_cuts(), any_cuts())
def test_any_cut(tmp_path_factory: pytest.TempPathFactory, written: list[list[Cut]], read: list[list[Cut]]) -> None:
    folder, whole = tmp_path_factory.mktemp("store"), state(1)
    save_all(quiet_stores(folder, len(written)), 1, [pieces(whole, cuts) for cuts in written])
    for store, cuts in zip(quiet_stores(folder, len(read)), read, strict=True):
        target = blank(cuts)
        assert store.load(1, target) == {"step": 1}
        assert differing(target, whole) == []


def test_files_are_plain_safetensors(tmp_path: Path) -> None:
    """Written by one process, tensors have their own names and shapes for any reader."""
    saved(tmp_path, 1)
    tensors, whole = load_file(tmp_path / "step-00000001/rank-00000.safetensors"), state(1)
    assert tensors.keys() == whole.keys()
    assert all(torch.equal(tensors[name], whole[name]) and tensors[name].shape == whole[name].shape for name in whole)


def test_chunks_of_real_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    big = torch.randn(2**20 + 3)
    Store(tmp_path, None, keep=1).save(1, [Piece("x", big.shape, 0, big)], {}, wait=True)
    (described,) = json.loads((tmp_path / "step-00000001/rank-00000.json").read_text())
    assert len(described["crc32"]) == 2
    for start, end in ((0, len(big)), (2**20 - 2, 2**20 + 2), (2**20, 2**20 + 3), (5, 6)):
        own = torch.zeros(end - start)
        Store(tmp_path, None, keep=1).load(1, [Piece("x", big.shape, start, own)])
        assert torch.equal(own, big[start:end])


def test_values_are_those_at_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`save` returns while nothing is written yet; what training changes from then on is not saved."""
    go, begun, write = threading.Event(), threading.Event(), store_module.write_part

    def slow(*args: Any) -> None:
        begun.set()
        assert go.wait(20)
        write(*args)

    monkeypatch.setattr(store_module, "write_part", slow)
    store, whole, extra = Store(tmp_path, None, keep=2), state(1), {"tokens": [5]}
    for step in (1, 2):
        go.clear()
        begun.clear()
        store.save(step, pieces(whole, ALONE), extra)
        assert begun.wait(20) and step not in store.steps()
        staging = store._staging.data_ptr()
        for tensor in whole.values():
            tensor.fill_(3 * step)
        extra["tokens"].append(6)
        go.set()
        store.wait()
    threes = {name: torch.full_like(tensor, 3) for name, tensor in whole.items()}
    target = blank(ALONE)
    assert store.load(1, target) == {"tokens": [5]} and differing(target, state(1)) == []
    assert store.load(2, target) == {"tokens": [5, 6]} and differing(target, threes) == []
    assert store._staging.data_ptr() == staging  # the same memory again


def test_a_step_that_is_held_is_not_written_again(tmp_path: Path) -> None:
    store = saved(tmp_path, 1, 2)
    before = (tmp_path / "step-00000002/index.json").stat().st_mtime_ns
    store.save(2, pieces(state(2), ALONE), {}, wait=True)
    again = Store(tmp_path, None, keep=9)
    again.load(2, blank(ALONE))
    again.save(2, pieces(state(2), ALONE), {}, wait=True)
    assert (tmp_path / "step-00000002/index.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="exists already"):  # from another run's state: nothing is replaced unasked
        Store(tmp_path, None, keep=9).save(1, pieces(state(5), ALONE), {}, wait=True)
    target = blank(ALONE)
    assert store.load(1, target) == {"step": 1} and differing(target, state(1)) == []


def test_retention_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    store, small = Store(tmp_path, None, keep=2, best="heldout"), torch.arange(6.0)
    expected = {1: ([1], 1), 2: ([1, 2], 2), 3: ([2, 3], 2), 4: ([2, 3, 4], 2), 5: ([2, 4, 5], 2), 6: ([5, 6], 6)}
    values = {1: 3.0, 2: 1.0, 3: float("nan"), 4: 1.0, 5: None, 6: 0.5}
    for step, (steps, best) in expected.items():
        store.save(step, [Piece("x", small.shape, 0, small)], {}, metric=values[step], wait=True)
        for reader in (store, Store(tmp_path, None, keep=1, best="heldout")):
            assert (reader.steps(), reader.best(), reader.latest()) == (steps, best, step)
    mark = json.loads((tmp_path / "best.json").read_text())
    assert mark == {"checkpoint": "step-00000006", "step": 6, "metric": "heldout", "value": 0.5}
    assert Store(tmp_path, None, keep=1, best="another").best() is None
    assert {path.name for path in tmp_path.iterdir()} == {"best.json", "step-00000005", "step-00000006"}


def test_retention_never_counts_what_cannot_be_read(tmp_path: Path) -> None:
    """Two damaged newer checkpoints do not push out the only good one."""
    saved(tmp_path, 1, 2, 3)
    (tmp_path / "step-00000002/rank-00000.safetensors").unlink()
    (tmp_path / "step-00000003/index.json").write_text("{}")
    store = Store(tmp_path, None, keep=1)
    assert store.steps() == [1, 3]  # 3 is there, and loading it says what is wrong
    store._retain()
    assert store.steps() == [1, 3]
    store.save(4, pieces(state(4), ALONE), {}, wait=True)
    assert store.steps() == [3, 4]


def test_nothing_there(tmp_path: Path) -> None:
    store = Store(tmp_path / "new", None, keep=1, best="x")
    assert (store.steps(), store.latest(), store.best()) == ([], None, None)
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="complete checkpoints there: none"):
        store.load(1, [])
    with pytest.raises(UserError, match="at least 1"):
        Store(tmp_path, None, keep=0)


@pytest.mark.parametrize("mistake", ["gap", "shape"])
def test_ranks_that_do_not_fit_together(tmp_path: Path, mistake: str) -> None:
    """What no rank gives, or two ranks give differently, is noticed when it is saved; all ranks are told."""
    whole, cuts = state(1), expert_cuts(2, 0)
    first, second = pieces(whole, cuts[0]), pieces(whole, cuts[1])
    if mistake == "gap":
        words = "no rank holds element 119 of model.experts, which has 120"
        second = [Piece(p.name, p.whole, p.start, p.data[:-1]) if p.name == "model.experts" else p for p in second]
    else:
        words = r"the ranks disagree about tokens: I64 \[4\] and I64 \[9\]"
        own = second if all(p.name != "tokens" for p in second) else first
        own.append(Piece("tokens", torch.Size([4]), 0, whole["tokens"][:4]))
    stores = quiet_stores(tmp_path, 2)
    for store, own in zip(stores, (first, second), strict=True):
        store.save(1, own, {})
    for store in stores:
        with pytest.raises(UserError, match=words):
            store.wait()
    assert list(tmp_path.iterdir()) == []
    save_all(stores, 1, [pieces(whole, own) for own in cuts])  # the same step again, now right
    assert stores[1].steps() == [1]


def test_ranks_that_would_load_different_steps(tmp_path: Path) -> None:
    class Torn(Quiet):
        def agree(self, value: int) -> bool:
            return False

    saved(tmp_path, 1)
    with pytest.raises(UserError, match="do all hosts share it"):
        Store(tmp_path, Torn(1, 2, None, torch.device("cpu")), keep=1).load(1, blank(ALONE))


def test_another_model(tmp_path: Path) -> None:
    store = saved(tmp_path, 1)
    data = torch.zeros(12)
    for piece, words in (
        (Piece("model.other", torch.Size([12]), 0, data), "model.other is missing"),
        (Piece("model.head", torch.Size([3, 4]), 0, data), "model.head is F32 [61, 37] instead of F32 [3, 4]"),
        (Piece("tokens", torch.Size([9]), 0, data[:9]), "tokens is I64 [9] instead of F32 [9]"),
    ):
        with pytest.raises(UserError) as error:
            store.load(1, [*blank(ALONE), piece])
        assert words in str(error.value) and "another model: 1 of 8" in str(error.value)
    with pytest.raises(UserError, match="has no nobody"):
        next(read_whole(tmp_path / "step-00000001", ["nobody"]))


def test_read_whole_streams(tmp_path: Path) -> None:
    """Named tensors in the order asked for, from a checkpoint of three ranks."""
    whole = state(1)
    save_all(quiet_stores(tmp_path, 3), 1, [pieces(whole, cuts) for cuts in CUTS["zero"](3, 2)])
    names = random.Random(0).sample(sorted(whole), 4)
    found = list(read_whole(tmp_path / "step-00000001", names))
    assert [name for name, _ in found] == names
    assert all(torch.equal(tensor, whole[name]) for name, tensor in found)
