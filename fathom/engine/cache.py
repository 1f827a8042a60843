"""Pages of the latent cache: who holds them, which prefix they hold, which may be overwritten. No tensors here.

A page holds the latents of `page_size` consecutive tokens in every layer. It is in exactly one of three states:

    held      reference count > 0: one or more running sequences read it
    cached    count 0, but sealed: its tokens are known, a new prompt with the same prefix may take it back
    free      count 0 and nothing worth keeping

A full page is sealed under a key that chains the key of the page before it with its own tokens, so a key names a whole
prefix. A hit is believed only after the tokens have been compared. When pages run out, cached pages are overwritten,
the longest unused first; a sequence gives its pages back from the end, so that prefixes go last.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

ROOT = b""


@dataclass(frozen=True)
class Sealed:
    """What a full page holds."""

    key: bytes
    parent: bytes
    tokens: tuple[int, ...]


def page_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The name of a prefix: 16 bytes over the name of what comes before and these tokens."""
    return hashlib.blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()


class PagePool:
    """`pages` pages of `page_size` tokens."""

    def __init__(self, pages: int, page_size: int) -> None:
        assert pages >= 1 and page_size >= 1
        self.pages, self.page_size = pages, page_size
        self._free = list(range(pages - 1, -1, -1))
        self._references = [0] * pages
        self._sealed: dict[int, Sealed] = {}
        self._by_key: dict[bytes, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()  # oldest first

    # ---- counts ----------------------------------------------------------------------------------------------------

    @property
    def available(self) -> int:
        """Pages that can be taken now: free ones and cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def held(self) -> int:
        """Pages that running sequences read."""
        return self.pages - self.available

    def pages_for(self, tokens: int) -> int:
        """How many pages hold this many tokens."""
        return -(-tokens // self.page_size)

    # ---- taking and giving back ------------------------------------------------------------------------------------

    def take(self, count: int) -> list[int] | None:
        """`count` pages, contents unspecified, one reference each; None, and nothing taken, if fewer are left."""
        if count > self.available:
            return None
        return [self._take_one() for _ in range(count)]

    def _take_one(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._cached.popitem(last=False)
            self._forget(page)
        self._references[page] = 1
        return page

    def release(self, pages: Sequence[int]) -> None:
        """Drop one reference of each; the last page first, so that it is overwritten before its prefix."""
        for page in reversed(pages):
            assert self._references[page] > 0, f"page {page} is not held"
            self._references[page] -= 1
            if self._references[page] == 0:
                if page in self._sealed:
                    self._cached[page] = None
                else:
                    self._free.append(page)

    # ---- prefixes --------------------------------------------------------------------------------------------------

    def seal(self, page: int, parent: bytes, tokens: Sequence[int]) -> bytes:
        """A held page is full: make it findable. Returns its key, also where another page holds that prefix already."""
        assert self._references[page] > 0 and len(tokens) == self.page_size
        key = page_key(parent, tokens)
        if key not in self._by_key and page not in self._sealed:
            self._sealed[page] = Sealed(key, parent, tuple(tokens))
            self._by_key[key] = page
        return key

    def match(self, tokens: Sequence[int], limit: int) -> tuple[list[int], list[bytes]]:
        """The longest sealed prefix within the first `limit` tokens: its pages and keys, one more reference each."""
        pages: list[int] = []
        keys: list[bytes] = []
        parent, size = ROOT, self.page_size
        for start in range(0, limit - limit % size, size):
            piece = tuple(tokens[start : start + size])
            key = page_key(parent, piece)
            page = self._by_key.get(key)
            if page is None or self._sealed[page].tokens != piece or self._sealed[page].parent != parent:
                break
            pages.append(page)
            keys.append(key)
            parent = key
        for page in pages:
            if self._references[page] == 0:
                del self._cached[page]
            self._references[page] += 1
        return pages, keys

    def clear(self) -> None:
        """Forget all cached prefixes; held pages stay."""
        for page in list(self._cached):
            self._forget(page)
            self._free.append(page)
        self._cached.clear()

    def _forget(self, page: int) -> None:
        sealed = self._sealed.pop(page)
        del self._by_key[sealed.key]

    # ---- invariants ------------------------------------------------------------------------------------------------

    def check(self, held: Sequence[Sequence[int]] = ()) -> None:
        """Raise AssertionError unless every page is in one state and counts equal the page lists in `held`."""
        counts = [0] * self.pages
        for pages in held:
            for page in pages:
                counts[page] += 1
        assert counts == self._references, "reference counts differ from what the sequences hold"
        free, cached = set(self._free), set(self._cached)
        assert len(free) == len(self._free) and not free & cached
        zero = {page for page in range(self.pages) if self._references[page] == 0}
        assert zero == free | cached, "a page without references is neither free nor cached, or a held one is"
        assert cached <= set(self._sealed) and not free & set(self._sealed)
        assert self._by_key == {sealed.key: page for page, sealed in self._sealed.items()}
