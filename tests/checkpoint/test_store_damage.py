"""However a file is damaged: one line that names it and says what to do; the checkpoint before it loads."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from store_worlds import blank, differing, pieces, quiet_stores, save_all, state, zero_cuts

from fathom.checkpoint.store import Store, read_whole
from fathom.checkpoint.store_format import read_index
from fathom.runtime import UserError

WHOLE = zero_cuts(1, 0)[0]
DATA, PART, INDEX = "rank-00001.safetensors", "rank-00001.json", "index.json"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 1 and 2, written by two ranks."""
    folder = tmp_path_factory.mktemp("good")
    stores = quiet_stores(folder, 2)
    for step in (1, 2):
        save_all(stores, step, [pieces(state(step), cuts) for cuts in zero_cuts(2, 4)])
    return folder


def flipped(where: float) -> Callable[[bytes], bytes]:
    """One bit changed, `where` from 0 (the first byte) to 1 (the last)."""

    def damage(content: bytes) -> bytes:
        at = round(where * (len(content) - 1))
        return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]

    return damage


def edited(**changes: Any) -> Callable[[bytes], bytes]:
    """index.json that says something else, with or without the checksum for it."""

    def damage(content: bytes) -> bytes:
        index = json.loads(content)
        index.pop("crc32")
        index |= {key: value for key, value in changes.items() if key != "resigned"}
        crc32 = zlib.crc32(json.dumps(index, sort_keys=True).encode()) if changes.get("resigned") else 5
        return json.dumps(index | {"crc32": crc32}).encode()

    return damage


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "short of a byte": lambda content: content[:-1],
    "longer": lambda content: content + b"x",
    "zeros": lambda content: bytes(len(content)),
    "first bit": flipped(0),
    "a bit in the first tenth": flipped(0.1),
    "a bit in the middle": flipped(0.5),
    "a bit near the end": flipped(0.97),
    "of the other rank": lambda content: b"",  # see below
    "of the other step": lambda content: b"",
}
INDICES: dict[str, Callable[[bytes], bytes]] = {
    "a list": lambda content: b"[]",
    "no object": lambda content: b"3",
    "deep": lambda content: b"[" * 100_000,
    "not text": lambda content: b"\xff\xfe",
    "another step": edited(step=7),
    "another extra": edited(extra={"step": 9}),
    "fewer ranks": edited(sizes=[5], parts=[5]),
    "unknown field": edited(more=1, resigned=True),
    "sizes and parts of different length": edited(parts=[1], resigned=True),
    "sizes of another kind": edited(sizes=3, resigned=True),
    "extra of another kind": edited(extra=[], resigned=True),
    "another format": edited(format="fathom-checkpoint-9", resigned=True),
    "another description": edited(parts=[1, 2], resigned=True),
    "another size": edited(sizes=[1, 2], resigned=True),
}
CASES = [(file, how) for file in (DATA, PART) for how in DAMAGES]
CASES += [(INDEX, how) for how in DAMAGES | INDICES if how not in ("of the other rank", "short of a byte")]  # a newline


@pytest.mark.parametrize(("file", "how"), CASES)
def test_damage_is_named(good: Path, tmp_path: Path, file: str, how: str) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "copy"))
    newest = folder / "step-00000002"
    content = (newest / file).read_bytes()
    if how == "of the other rank":
        changed = (newest / file.replace("1", "0")).read_bytes()
    elif how == "of the other step":
        changed = (folder / "step-00000001" / file).read_bytes()
    else:
        changed = (DAMAGES | INDICES)[how](content)
    assert changed != content
    (newest / file).write_bytes(changed)
    store = Store(folder, None, keep=1)
    assert store.steps() == [1, 2]  # nobody falls back in silence
    for read in (lambda: store.load(2, blank(WHOLE)), lambda: list(read_whole(newest))):
        with pytest.raises(UserError) as error:
            read()
        said = str(error.value)
        assert str(newest) in said and "\n" not in said and len(said) < 400 + 2 * len(str(newest))
        if how != "another format":
            assert f"remove {newest} to go on from the checkpoint before it" in said
    target = blank(WHOLE)
    assert store.load(1, target) == {"step": 1} and differing(target, state(1)) == []


@pytest.mark.parametrize("file", [DATA, PART, INDEX, DATA.replace("1", "0"), PART.replace("1", "0")])
def test_without_a_file_it_is_no_checkpoint(good: Path, tmp_path: Path, file: str) -> None:
    """It is never chosen; asked for by number, it says so; a save of the same step takes its place."""
    folder = Path(shutil.copytree(good, tmp_path / "copy"))
    (folder / "step-00000002" / file).unlink()
    stores = quiet_stores(folder, 2)
    assert stores[0].steps() == [1] and stores[0].latest() == 1
    with pytest.raises(UserError, match="not a complete checkpoint"):
        stores[0].load(2, blank(WHOLE))
    save_all(stores, 2, [pieces(state(2), cuts) for cuts in zero_cuts(2, 4)])
    target = blank(WHOLE)
    stores[0].load(2, target)
    assert stores[0].steps() == [1, 2] and differing(target, state(2)) == []


@pytest.mark.parametrize(
    "line",
    [
        [], "x", {}, {"start": 9, "end": 2}, {"name": "y"}, {"dtype": "F99"}, {"start": -1}, {"start": 1.5},
        {"end": 10**9}, {"whole": [-1]}, {"whole": "many"}, {"crc32": []}, {"crc32": 5}, {"crc32": ["x"]},
        {"end": True}, {"whole": [2**62, 2**62]}, {"whole": [2**50], "end": 2**50, "crc32": [1]}, {"dtype": "I64"},
    ],
)  # fmt: skip
def test_a_description_made_by_hand(tmp_path: Path, line: Any) -> None:
    """Its checksum is right and what it says is not: an error and no crash, for a checkpoint may come from anybody."""
    store = Store(tmp_path, None, keep=1)
    store.save(1, pieces({"x": torch.ones(9)}, [("x", 0, 9)]), {}, wait=True)
    folder = tmp_path / "step-00000001"
    part = json.loads((folder / "rank-00000.json").read_text())
    changed = part[0] | line if isinstance(line, dict) and line else line
    raw = json.dumps([changed]).encode()
    (folder / "rank-00000.json").write_bytes(raw)
    index = folder / "index.json"
    index.write_bytes(edited(parts=[zlib.crc32(raw)], resigned=True)(index.read_bytes()))
    assert read_index(folder) is not None
    with pytest.raises(UserError, match="step-00000001"):
        list(read_whole(folder))


def test_only_what_is_used_is_read(good: Path, tmp_path: Path) -> None:
    """A bad byte in one tensor does not keep another from being exported."""
    folder = Path(shutil.copytree(good, tmp_path / "copy")) / "step-00000002"
    path = folder / "rank-00000.safetensors"
    content = bytearray(path.read_bytes())
    header = int.from_bytes(content[:8], "little")
    names = json.loads(content[8 : 8 + header])
    content[8 + header + names["model.experts"]["data_offsets"][0]] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"checksum of model\.experts"):
        list(read_whole(folder, ["model.experts"]))
    ((name, tensor),) = read_whole(folder, ["tokens"])
    assert name == "tokens" and torch.equal(tensor, state(2)["tokens"])
