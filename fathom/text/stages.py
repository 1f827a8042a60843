"""The stages of a build: what is done to a chunk of documents, and by whom.

    Chunk --prepare: normalise, filter, sign--> (build.py drops copies) --encode: tokens-->

Both stages are functions of a chunk alone, so any number of processes may share them; `ordered` gives the results back
in the order of the input.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import re
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from fathom.runtime import UserError
from fathom.text.batch import Array
from fathom.text.dedup import NearDuplicates, is_heldout, words
from fathom.text.filters import Rules, normalise
from fathom.text.ingest import Document, Part, Reading

A = TypeVar("A")
B = TypeVar("B")
Encode = Callable[[list[str]], list[list[int]]]


@dataclass(frozen=True)
class Plan:
    """What is built; any change of it makes another corpus."""

    parts: list[Part]
    reading: Reading = field(default_factory=Reading)
    normalise: bool = True
    rules: Rules | None = field(default_factory=Rules)
    near: float = 0.8  # similarity from which on a document is a copy; 0: copies stay
    heldout_percent: float = 0.0  # of the documents, by their hash, into the folder heldout/
    shard_tokens: int = 1 << 28


@dataclass(frozen=True)
class Vocabulary:
    """How text becomes ids. With processes, `encode` must be picklable."""

    encode: Encode
    bos: int
    eos: int
    size: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest type that holds every id."""
        return np.dtype(np.uint16 if self.size <= 2**16 else np.uint32)


@dataclass
class Chunk:
    """Some consecutive records, and where the input stands after them."""

    documents: list[Document]
    end: tuple[int, int]  # part, record
    read: int = 0  # bytes of the part so far
    counts: Counter[str] = field(default_factory=Counter)
    marks: list[tuple[bytes, bytes]] = field(default_factory=list)
    held: list[bool] = field(default_factory=list)
    tokens: list[Array] = field(default_factory=list)


def prepare(chunk: Chunk, plan: Plan) -> Chunk:
    """Normalised, filtered, signed."""
    out = dataclasses.replace(chunk, documents=[])
    for document in chunk.documents:
        out.counts["read"] += 1
        text = normalise(document.text) if plan.normalise else document.text
        found = words(text) if plan.rules or plan.near else []
        reason = "empty" if not text else plan.rules.verdict(text, found) if plan.rules else None
        if reason:
            out.counts[reason] += 1
            continue
        out.documents.append(dataclasses.replace(document, text=text))
        out.held.append(plan.heldout_percent > 0 and is_heldout(text, plan.heldout_percent))
        if plan.near:
            out.marks.append(NearDuplicates.mark(found or [text]))
    return out


def encode(chunk: Chunk, vocabulary: Vocabulary) -> Chunk:
    """With its tokens."""
    try:
        ids = vocabulary.encode([document.text for document in chunk.documents]) if chunk.documents else []
    except (UnicodeEncodeError, TypeError):  # the tokenizer's words for a str that UTF-8 cannot write
        where = next(document.where for document in chunk.documents if re.search("[\ud800-\udfff]", document.text))
        raise UserError(f"{where} holds half of a surrogate pair, which is no character") from None
    chunk.tokens = [np.array([vocabulary.bos, *each, vocabulary.eos], vocabulary.dtype) for each in ids]
    return chunk


def ordered(
    pool: ProcessPoolExecutor | None, processes: int, function: Callable[[A], B], items: Iterable[A]
) -> Iterator[B]:
    """function(item) of every item in order; with a pool, some items ahead."""
    if pool is None:
        yield from map(function, items)
        return
    waiting: deque[Any] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError("a worker process died (out of memory?); run again with fewer --processes") from None


@contextlib.contextmanager
def pool(processes: int) -> Iterator[ProcessPoolExecutor | None]:
    if processes < 1:
        yield None
        return
    # Not forked: this process has threads (the tokenizer's, torch's), which a fork would leave behind half alive.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_become_worker)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _become_worker() -> None:
    """One thread each, and no life after the parent, however it ended."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # type: ignore[func-returns-value]
