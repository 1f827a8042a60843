"""Documents out of files: text, JSONL, Parquet (.gz and .zst around the first two), or a data set of the hub.

    find(["web=data/web/*.jsonl.zst", "books/", "hub:org/name:config:train"]) -> parts, in a fixed order
    documents(part, ...) -> Document(source, text, place) of one part, from any record on

A record is the unit that counts: a line of JSONL, a row of Parquet, a file of text (or, with `separator`, a stretch of
one). A build that was interrupted at record n of part p continues there; earlier lines are skipped without being
parsed, earlier row groups of Parquet are not read.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import importlib
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from fathom.runtime import UserError

JSONL, PARQUET, TEXT = (".jsonl", ".ndjson", ".json"), (".parquet",), (".txt", ".text", ".md")
PACKED = (".gz", ".zst")
SOURCE = re.compile(r"\w[\w.-]*")
MAX_TEXT = 256 * 2**20


@dataclass(frozen=True)
class Part:
    """One file (or hub data set) of a source."""

    source: str
    path: str
    kind: str  # text | jsonl | parquet | hub
    size: int = 0
    changed: int = 0  # time of the last change, ns


@dataclass(frozen=True)
class Document:
    """A text, its source, how many bytes of its file were read with it, and how a message calls it."""

    source: str
    text: str
    read: int
    where: str


@dataclass(frozen=True)
class Reading:
    """How records become documents."""

    text_column: str = "text"
    source_column: str = ""  # the source of each record; empty: the name of its input
    separator: str = ""  # text files: a line that ends a document; empty: a file is a document


def find(inputs: list[str]) -> list[Part]:
    """The parts of all inputs: [NAME=]file, folder or glob, or [NAME=]hub:ID[:CONFIG[:SPLIT]]."""
    if not inputs:
        raise UserError("no input is given; name files, folders, globs or hub:ID")
    parts: list[Part] = []
    for given in inputs:
        name, equals, rest = given.partition("=")
        if not (equals and SOURCE.fullmatch(name)) or Path(given).exists():
            name, rest = "", given
        parts += [_hub_part(name, rest)] if rest.startswith("hub:") else _file_parts(name, rest)
    seen: set[str] = set()
    for part in parts:
        if part.path in seen:
            raise UserError(f"{part.path} is named twice; each file is read once")
        seen.add(part.path)
    return parts


def _file_parts(name: str, pattern: str) -> list[Part]:
    path = Path(pattern)
    if path.is_dir():
        known = (*JSONL, *PARQUET, *TEXT)
        files = sorted(p for p in path.rglob("*") if p.is_file() and _plain_suffix(p) in known)
        if not files:
            raise UserError(f"{path} holds no file of a known kind ({', '.join(known)}, also with .gz or .zst)")
        name = name or path.resolve().name
    elif path.exists():
        files, name = [path], name or _stem(path)
    else:
        files = sorted(p for p in map(Path, glob.glob(pattern, recursive=True)) if p.is_file())
        if not files:
            raise UserError(f"{pattern} does not exist" + (" (no file matches)" if glob.has_magic(pattern) else ""))
        fixed = [p for p in itertools.takewhile(lambda p: not glob.has_magic(p), path.parts) if p not in ("/", ".")]
        name = name or (fixed[-1] if fixed else _stem(files[0]))
    if not SOURCE.fullmatch(name):
        raise UserError(f"{name!r} cannot name a source (letters, digits, '.-_'); write NAME={pattern}")
    return [_file_part(name, file) for file in files]


def _file_part(name: str, path: Path) -> Part:
    suffix = _plain_suffix(path)
    kind = "jsonl" if suffix in JSONL else "parquet" if suffix in PARQUET else "text"
    stat = path.stat()
    return Part(name, str(path), kind, stat.st_size, stat.st_mtime_ns)


def _plain_suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix in PACKED else path).suffix.lower()


def _stem(path: Path) -> str:
    return (path.with_suffix("") if path.suffix in PACKED else path).stem


def _hub_part(name: str, text: str) -> Part:
    fields = text.split(":")
    if len(fields) > 4 or not all(fields):
        raise UserError(f"{text!r} is not hub:ID[:CONFIG[:SPLIT]], such as hub:HuggingFaceFW/fineweb:sample-10BT:train")
    return Part(name or re.sub(r"[^\w.-]", "-", fields[1].split("/")[-1]), text, "hub")


# ---- records -------------------------------------------------------------------------------------------------------


def documents(part: Part, how: Reading, skip: int = 0) -> Iterator[Document]:
    """The documents of `part` after its first `skip` records; a null text counts as an empty one."""
    if part.kind == "text":
        for text, read in itertools.islice(_texts(part, how.separator), skip, None):
            yield Document(part.source, text, read, part.path)
        return
    records = {"jsonl": _jsonl, "parquet": _parquet, "hub": _hub}[part.kind]
    for where, record, read in records(part, how, skip):
        if how.text_column not in record:
            columns = ", ".join(sorted(record)) or "none"
            raise UserError(f"{where} has no {how.text_column!r}; it has: {columns} (choose with --text-column)")
        text = record[how.text_column]
        if not isinstance(text, str | None):
            raise UserError(f"{where}: {how.text_column!r} is a {type(text).__name__}, it must be text")
        source: Any = record.get(how.source_column) if how.source_column else part.source
        if not isinstance(source, str) or not (source == part.source or SOURCE.fullmatch(source)):
            raise UserError(f"{where}: source is {source!r}, it must be a word of letters, digits, '.-_'")
        yield Document(source, text or "", read, where)


def _texts(part: Part, separator: str) -> Iterator[tuple[str, int]]:
    with _open(part) as (raw, file):
        if not separator:
            data = file.read(MAX_TEXT + 1)
            if len(data) > MAX_TEXT:
                raise UserError(
                    f"{part.path} is larger than {MAX_TEXT >> 20} MiB as one document; "
                    "name the line that ends a document with --separator"
                )
            yield _decode(data, part.path), raw.tell()
            return
        lines: list[str] = []
        for number, line in enumerate(file, 1):
            text = _decode(line, f"{part.path} line {number}")
            if text.rstrip("\r\n") == separator:
                yield "".join(lines), raw.tell()
                lines = []
            else:
                lines.append(text)
        if lines:
            yield "".join(lines), raw.tell()


def _jsonl(part: Part, how: Reading, skip: int) -> Iterator[tuple[str, dict[str, Any], int]]:
    with _open(part) as (raw, file):
        for number, line in enumerate(itertools.islice(file, skip, None), skip + 1):
            where = f"{part.path} line {number}"
            try:
                record = json.loads(_decode(line, where))
            except json.JSONDecodeError as error:
                raise UserError(f"{where} is not JSON ({error}); fix or remove it") from None
            if not isinstance(record, dict):
                raise UserError(f"{where} holds a {type(record).__name__}, not an object")
            yield where, record, raw.tell()


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 ({error}); convert it") from None


@contextlib.contextmanager
def _open(part: Part) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """(the file as it lies on the disk, its unpacked content); errors of either name the file."""
    broken: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error)
    try:
        with open(part.path, "rb") as raw:
            if part.path.endswith(".gz"):
                yield raw, cast(IO[bytes], gzip.GzipFile(fileobj=raw))
            elif part.path.endswith(".zst"):
                arrow = _pyarrow("pyarrow")
                broken = (*broken, arrow.ArrowException)
                yield raw, io.BufferedReader(arrow.CompressedInputStream(raw, "zstd"), 1 << 20)
            else:
                yield raw, raw
    except broken as error:
        reason = getattr(error, "strerror", None) or f"{' '.join(str(error).split())[:200]}; it may be incomplete"
        raise UserError(f"cannot read {part.path}: {reason}") from None


def _parquet(part: Part, how: Reading, skip: int) -> Iterator[tuple[str, dict[str, Any], int]]:
    parquet = _pyarrow("pyarrow.parquet")
    arrow = _pyarrow("pyarrow")
    try:
        with parquet.ParquetFile(part.path) as file:
            names, rows = file.schema_arrow.names, max(file.metadata.num_rows, 1)
            wanted = [name for name in (how.text_column, how.source_column) if name in names]
            if how.text_column not in names:
                yield part.path, dict.fromkeys(names), 0  # the caller says what is missing
            number = 0
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if number + size <= skip:
                    number += size
                    continue
                for batch in file.iter_batches(256, row_groups=[group], columns=wanted):
                    for record in batch.to_pylist():
                        number += 1
                        if number > skip:
                            yield f"{part.path} row {number}", record, part.size * number // rows
    except (OSError, arrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot read {part.path} as Parquet ({reason}); fetch it again") from None


def _pyarrow(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError("Parquet and .zst files need the library pyarrow; pip install pyarrow") from None


def _hub(part: Part, how: Reading, skip: int) -> Iterator[tuple[str, dict[str, Any], int]]:
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError:
        raise UserError(
            f"{part.path} needs the library datasets (pip install datasets) and a network; "
            "or download the files and name them"
        ) from None
    _, name, config, split = (part.path.split(":") + [""] * 2)[:4]
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        for number, record in enumerate(rows.skip(skip), skip + 1):
            yield f"{part.path} row {number}", dict(record), 0
    except UserError:
        raise
    except Exception as error:  # the library raises whatever lies below it: HTTP, file systems, its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"cannot read {part.path} ({reason}); check the name and the network") from None
