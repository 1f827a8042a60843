"""Files of any kind to documents; every broken one is named, with what is wrong in it."""

from __future__ import annotations

import gzip
import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fathom.runtime import UserError
from fathom.text.ingest import Part, Reading, documents, find

TEXTS = [f"document number {i}, é" for i in range(10)]
LINES = "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(TEXTS)).encode()


def zst(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return bytes(sink.getvalue())


def parquet(path: Path, columns: dict[str, Any], group: int = 4) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


def read(path: Path | str, skip: int = 0, **how: str) -> list[str]:
    (part,) = find([str(path)])
    return [document.text for document in documents(part, Reading(**how), skip)]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The same ten documents in every form."""
    made = {"jsonl": LINES, "jsonl.gz": gzip.compress(LINES), "jsonl.zst": zst(LINES)}
    joined = "\n--\n".join(TEXTS).encode()
    made |= {"txt": joined, "txt.gz": gzip.compress(joined), "md.zst": zst(joined)}
    for kind, data in made.items():
        (tmp_path / f"x.{kind}").write_bytes(data)
    paths = {kind: tmp_path / f"x.{kind}" for kind in made}
    return paths | {"parquet": parquet(tmp_path / "x.parquet", {"n": range(10), "text": TEXTS})}


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "txt", "txt.gz", "md.zst", "parquet"])
def test_every_form_from_every_record_on(files: dict[str, Path], kind: str) -> None:
    for skip in (0, 1, 4, 6, 9, 10, 11):
        assert [t.rstrip("\n") for t in read(files[kind], skip, separator="--")] == TEXTS[skip:]
    (part,) = find([str(files[kind])])
    at = [document.read for document in documents(part, Reading(separator="--"))]
    assert at == sorted(at) and 0 < at[-1] <= part.size


def test_a_text_file_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\ntwo\n")  # with the mark that some editors write
    assert read(tmp_path / "a.txt") == ["one\ntwo\n"]
    (tmp_path / "code.py").write_text("x = 1\n")
    assert read(tmp_path / "code.py") == ["x = 1\n"]


def test_null_is_an_empty_document(tmp_path: Path) -> None:
    assert read(parquet(tmp_path / "x.parquet", {"text": ["a", None, "b"]})) == ["a", "", "b"]


def test_columns(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", {"body": ["one", "two"], "kind": ["a", "b"]})
    (part,) = find([str(path)])
    found = list(documents(part, Reading("body", "kind")))
    assert [(document.source, document.text) for document in found] == [("a", "one"), ("b", "two")]


def test_folders_globs_and_names(tmp_path: Path) -> None:
    for name in ("web/b.jsonl", "web/deep/a.txt.gz", "web/readme.bin", "more/1.txt", "more/2.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    def found(*inputs: str) -> list[tuple[str, str, str]]:
        return [(p.source, p.kind, Path(p.path).name) for p in find([str(i) for i in inputs])]

    web = [("web", "jsonl", "b.jsonl"), ("web", "text", "a.txt.gz")]
    assert found(f"{tmp_path}/web") == web
    assert found(f"{tmp_path}/more/*.txt") == [("more", "text", "1.txt"), ("more", "text", "2.txt")]
    assert found(f"w={tmp_path}/web", f"{tmp_path}/more/1.txt") == [
        ("w", "jsonl", "b.jsonl"),
        ("w", "text", "a.txt.gz"),
        ("1", "text", "1.txt"),
    ]
    assert found(f"{tmp_path}/**/*.txt.gz")[0][2] == "a.txt.gz"
    assert found("hub:org/some-set:config:train") == [("some-set", "hub", "some-set:config:train")]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [([], "no input"), (["gone.txt"], "gone.txt does not exist"), (["*.nothing"], "no file matches"),
     (["empty"], "no file of a known kind"), (["a.txt", "a.txt"], "named twice"), (["hub:"], "is not hub:ID"),
     (["hub:a:b:c:d"], "is not hub:ID"), (["my text.txt"], "cannot name a source.*NAME=my text.txt")],
)  # fmt: skip
def test_inputs_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str], words: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "my text.txt").write_text("a")
    with pytest.raises(UserError, match=words):
        find(inputs)


BROKEN: dict[str, tuple[str, bytes | Callable[[Path], object], str]] = {
    "not JSON": ("x.jsonl", b'{"text": "a"}\n{"text"\n', "line 2 is not JSON"),
    "no object": ("x.jsonl", b'{"text": "a"}\n[1]\n', "line 2 holds a list"),
    "JSONL not UTF-8": ("x.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "line 2 is not UTF-8"),
    "text not UTF-8": ("x.txt", b"caf\xe9", "is not UTF-8.*convert"),
    "no text": ("x.jsonl", b'{"body": "a", "id": 1}\n', "no 'text'; it has: body, id .*--text-column"),
    "text is a number": ("x.jsonl", b'{"text": 1}\n', "line 1: 'text' is a int"),
    "Parquet without text": ("x.parquet", lambda p: parquet(p, {"url": ["a"], "body": ["b"]}), "it has: body, url"),
    "empty Parquet without text": ("x.parquet", lambda p: parquet(p, {"body": pa.array([], "string")}), "it has: body"),
    "Parquet of numbers": ("x.parquet", lambda p: parquet(p, {"text": [1, 2]}), "row 1: 'text' is a int"),
    "no Parquet": ("x.parquet", b"PAR1 but not really", "as Parquet"),
    "empty Parquet file": ("x.parquet", b"", "as Parquet"),
    "half a gzip": ("x.jsonl.gz", gzip.compress(LINES)[:-20], "incomplete"),
    "no gzip": ("x.jsonl.gz", LINES, "cannot read"),
    "half a zstd": ("x.jsonl.zst", zst(LINES)[:-9], "incomplete"),
    "no zstd": ("x.jsonl.zst", LINES, "cannot read"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named(tmp_path: Path, case: str) -> None:
    name, content, words = BROKEN[case]
    path = tmp_path / name
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        read(path)
    assert str(path) in str(error.value)


def test_a_damaged_parquet_page(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", {"text": ["abcdefgh" * 50 + str(i) for i in range(1000)]}, 1000)
    data = bytearray(path.read_bytes())
    data[4:60] = b"\xff" * 56
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x\.parquet as Parquet"):
        read(path)


def test_a_file_that_went_away(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*gone\.txt: No such file"):
        list(documents(Part("a", str(tmp_path / "gone.txt"), "text"), Reading()))


# ---- the hub --------------------------------------------------------------------------------------------------------


class Rows:
    """As much of a streamed data set as is used."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def skip(self, count: int) -> Rows:
        return Rows(self.rows[count:])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(name: str, config: str | None, **rest: Any) -> Rows:
        asked.append((name, config, rest))
        if name == "org/gone":
            raise ConnectionError("no route\nto host")
        return Rows([{"text": text} for text in TEXTS])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))  # type: ignore[arg-type]
    assert read("hub:org/name:config:test", 3) == TEXTS[3:]
    assert read("hub:org/name") == TEXTS
    assert asked == [
        ("org/name", "config", {"split": "test", "streaming": True}),
        ("org/name", None, {"split": "train", "streaming": True}),
    ]
    with pytest.raises(UserError, match=r"hub:org/gone \(no route to host\).*network"):
        read("hub:org/gone")
    with pytest.raises(UserError, match=r"it has: text \(choose"):
        read("hub:org/name", text_column="body")


def test_hub_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="pip install datasets"):
        read("hub:org/name")


def test_without_pyarrow(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)  # type: ignore[arg-type]
    assert read(files["jsonl.gz"]) == TEXTS
    for kind in ("parquet", "jsonl.zst"):
        with pytest.raises(UserError, match="pip install pyarrow"):
            read(files[kind])
