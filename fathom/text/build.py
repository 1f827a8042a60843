"""From documents to token shards, in order, in parallel, and again from where it stopped.

    parts --read--> chunks --normalise, filter, sign--> --near duplicates--> --tokenise--> shards --commit--> state.json
                                  (processes)              (one place)       (processes)

Chunks may be worked on by many processes, but they leave every stage in the order of the input: what is written is the
same with any number of them. A commit puts the shards on the disk, then replaces state.json, which says up to which
record of which part the input is done, how long each shard is, and how many signatures are remembered. After a kill at
any moment the next build cuts the files back to the last commit and goes on: the shards come out byte for byte as
without the kill. meta.json is the very last; a folder without it is not read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fathom.runtime import UserError, progress, read_json, write_json
from fathom.text.dedup import NearDuplicates
from fathom.text.ingest import Document, Part, Reading, documents
from fathom.text.shards import FORMAT, ShardWriter, append
from fathom.text.stages import Chunk, Encode, Plan, Vocabulary, encode, ordered, pool, prepare

CHUNK_DOCUMENTS, CHUNK_CHARS, COMMIT_BYTES = 256, 1 << 20, 32 << 20
STATE, SIGNATURES = "state.json", "signatures.bin"
TRAINED = "trained.json"  # in the folder of a tokenizer: what it was trained on, see own_tokenizer.py


def build(
    out: Path, plan: Plan, vocabulary: Vocabulary, *, processes: int = 0, weights: dict[str, float] | None = None,
    replace: bool = False, commit_bytes: int = COMMIT_BYTES,
) -> dict[str, Any]:  # fmt: skip
    """Build, or continue, or find it done; returns meta. `replace`: a folder with another plan is built anew."""
    with _alone(claimed(out, replace), wait=replace):
        fingerprint = _fingerprint(plan, vocabulary)
        done = out / "meta.json"
        for path in (done, out / STATE):
            if not path.exists():
                continue
            old: dict[str, Any] = read_json(path)
            changed = [key for key in fingerprint if old.get("fingerprint", {}).get(key) != fingerprint[key]]
            if changed and not replace:
                raise UserError(f"{out} was built with other {', '.join(changed)}; remove it or choose another folder")
            if changed:
                path.unlink()  # from here on, until it is written again, the folder counts as empty
            elif path == done:
                return _finish(out, old, weights)
        _Build(out, plan, vocabulary, fingerprint, commit_bytes).run(processes)
        meta: dict[str, Any] = read_json(out / STATE)
        return _finish(out, _metas(out, plan, vocabulary, meta), weights)


def claimed(out: Path, replace: bool = False) -> Path:
    """`out`, made if need be; a folder of something else is refused, also where it would only be added to."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; choose another folder") from None
    known = replace or (out / "meta.json").exists() or (out / STATE).exists()
    own = [out / "tokenizer"] if (out / "tokenizer" / TRAINED).exists() else []
    if not known and any(path not in [*own, *_left_over(out)] for path in out.iterdir()):
        raise UserError(f"{out} holds files that are not of a build; choose another folder")
    return out


def tokenize(jsonl: Path, out: Path, encode_batch: Encode, bos: int, eos: int, vocab_size: int) -> dict[str, Any]:
    """Token streams of a corpus file, lines {"source", "text"}, text as it is; done once as long as nothing changed.

    meta["sources"][name] = {"tokens", "documents", "bytes", "shards"}; bytes are UTF-8 bytes of the text, for bits per
    byte.
    """
    if not jsonl.exists():
        raise UserError(f"{jsonl} does not exist; build the corpus first (fathom corpus build --out DIR)")
    stat = jsonl.stat()
    part = Part("", str(jsonl), "jsonl", stat.st_size, stat.st_mtime_ns)
    plan = Plan([part], Reading(source_column="source"), normalise=False, rules=None, near=0.0)
    return build(out, plan, Vocabulary(encode_batch, bos, eos, vocab_size), replace=True)


def _fingerprint(plan: Plan, vocabulary: Vocabulary) -> dict[str, Any]:
    """What the result depends on, by the name that a message gives it."""
    probe = vocabulary.encode(["The quick brown fox, 12345.\n\nΩ"])[0]
    rules = None if plan.rules is None else dataclasses.asdict(plan.rules)
    return {
        "format": FORMAT,
        "inputs": [[p.source, Path(p.path).name, p.size, p.changed] for p in plan.parts],
        "columns": dataclasses.asdict(plan.reading),
        "filters": [plan.normalise, rules],
        "near duplicates": [plan.near, NearDuplicates.version() if plan.near else None],
        "held-out share": plan.heldout_percent,
        "shard size": plan.shard_tokens,
        "tokenizer": [vocabulary.bos, vocabulary.eos, vocabulary.size, probe],
    }


@contextlib.contextmanager
def _alone(out: Path, *, wait: bool) -> Iterator[None]:
    """One build at a time; the ranks of one machine wait for the first of them and find it done."""
    folder = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"another build is writing {out}; wait for it or choose another folder") from None
    finally:
        os.close(folder)


def _metas(out: Path, plan: Plan, vocabulary: Vocabulary, state: dict[str, Any]) -> dict[str, Any]:
    """meta of the folder; that of the held-out side is written first."""
    if not state["sides"]["."]:
        raise UserError(
            f"no source has a document left ({_said(state['counts'])}); loosen the filters or give more text"
        )
    shared = {key: state[key] for key in ("fingerprint", "counts")} | {
        "format": FORMAT, "dtype": vocabulary.dtype.name, "bos": vocabulary.bos, "eos": vocabulary.eos,
        "vocab_size": vocabulary.size, "weights": {},
    }  # fmt: skip
    if state["sides"].get("heldout"):
        write_json(out / "heldout" / "meta.json", shared | {"sources": state["sides"]["heldout"]})
    return shared | {"sources": state["sides"]["."]}


def _finish(out: Path, meta: dict[str, Any], weights: dict[str, float] | None) -> dict[str, Any]:
    unknown = sorted(set(weights or {}) - set(meta["sources"]))
    if unknown:
        raise UserError(f"weights name {unknown}, the sources are {sorted(meta['sources'])}; correct and run again")
    final = meta | {"weights": meta["weights"] if weights is None else weights}
    if final != meta or not (out / "meta.json").exists():
        write_json(out / "meta.json", final)
    for name in (STATE, SIGNATURES):
        (out / name).unlink(missing_ok=True)
    return final


def _left_over(out: Path) -> list[Path]:
    """What a writer that was killed did not finish."""
    return [*out.glob(f".{STATE}.*.tmp"), *out.glob(".meta.json.*.tmp")]


def _said(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items()) or "nothing was read"


class _Build:
    """One run of a build: everything between two commits."""

    def __init__(self, out: Path, plan: Plan, vocabulary: Vocabulary, fingerprint: Any, commit_bytes: int) -> None:
        self.out, self.plan, self.vocabulary, self.commit_bytes = out, plan, vocabulary, commit_bytes
        for left in _left_over(out):
            left.unlink()
        sides = [".", "heldout"] if plan.heldout_percent else ["."]
        self.state: dict[str, Any] = {
            "fingerprint": fingerprint, "at": [0, 0], "read": 0, "signatures": 0, "counts": {},
            "sides": {side: {} for side in sides},
        }  # fmt: skip
        if (out / STATE).exists():
            self.state = read_json(out / STATE)
        else:
            (out / SIGNATURES).unlink(missing_ok=True)
        self.counts = Counter(self.state["counts"])
        self.writers = {
            side: ShardWriter(out / side, vocabulary.dtype, plan.shard_tokens, self.state["sides"][side])
            for side in sides
        }
        self.seen = NearDuplicates(plan.near) if plan.near else None
        self._restore(self.state["signatures"])
        self._signatures: list[bytes] = []
        self._uncommitted = 0
        write_json(out / STATE, self.state)

    def run(self, processes: int) -> None:
        """From the last commit to the end of the input."""
        first = partial(prepare, plan=self.plan)
        last = partial(encode, vocabulary=self.vocabulary)
        sizes = [part.size for part in self.plan.parts]
        part, read = self.state["at"][0], self.state["read"]
        with pool(processes) as workers, progress("build", sum(sizes)) as bar:
            bar.advance(sum(sizes[:part]) + read)
            chunks = ordered(workers, processes, first, self._chunks())
            for chunk in ordered(workers, processes, last, map(self._unique, chunks)):
                after = sizes[part] if chunk.end[0] > part else chunk.read
                bar.advance(max(after - read, 0))
                part, read = chunk.end[0], 0 if chunk.end[0] > part else chunk.read
                self._write(chunk, read)
        self._commit()

    def _chunks(self) -> Iterator[Chunk]:
        at, skip = self.state["at"]
        for number in range(at, len(self.plan.parts)):
            batch: list[Document] = []
            chars, record = 0, skip
            for document in documents(self.plan.parts[number], self.plan.reading, skip):
                batch.append(document)
                chars += len(document.text)
                record += 1
                if len(batch) == CHUNK_DOCUMENTS or chars > CHUNK_CHARS:
                    yield Chunk(batch, (number, record), document.read)
                    batch, chars = [], 0
            yield Chunk(batch, (number + 1, 0))
            skip = 0

    def _unique(self, chunk: Chunk) -> Chunk:
        """Without copies of what came before; the only stage that knows the whole corpus."""
        if self.seen is None:
            return chunk
        verdicts = [self.seen.verdict(mark) for mark in chunk.marks]
        chunk.counts.update(verdict for verdict in verdicts if verdict)
        new = [i for i, verdict in enumerate(verdicts) if verdict is None]
        return dataclasses.replace(
            chunk, documents=[chunk.documents[i] for i in new], marks=[chunk.marks[i] for i in new],
            held=[chunk.held[i] for i in new],
        )  # fmt: skip

    def _write(self, chunk: Chunk, read: int) -> None:
        for document, held, tokens in zip(chunk.documents, chunk.held, chunk.tokens, strict=True):
            size = len(document.text.encode())
            self.writers["heldout" if held else "."].add(document.source, tokens, size)
            self._uncommitted += size
        self.counts.update(chunk.counts)
        self.counts["kept"] += len(chunk.documents)
        self._signatures += [len(near).to_bytes(2, "little") + exact + near for exact, near in chunk.marks]
        self.state["at"], self.state["read"] = list(chunk.end), read
        if self._uncommitted >= self.commit_bytes:
            self._commit()

    def _commit(self) -> None:
        for writer in self.writers.values():
            writer.flush()
        new = b"".join(self._signatures)
        append({self.out / SIGNATURES: new} if new else {})
        self.state["signatures"] += len(new)
        self.state["counts"] = dict(self.counts)
        self.state["sides"] = {side: writer.sources for side, writer in self.writers.items()}
        write_json(self.out / STATE, self.state)
        self._signatures, self._uncommitted = [], 0

    def _restore(self, size: int) -> None:
        """Remember again what the committed documents looked like."""
        path = self.out / SIGNATURES
        if self.seen is None or not path.exists():
            return
        os.truncate(path, size)
        data, at = path.read_bytes(), 0
        while at < len(data):
            start, end = at + 18, at + 18 + int.from_bytes(data[at : at + 2], "little")
            self.seen.verdict((data[at + 2 : start], data[start:end]))
            at = end
