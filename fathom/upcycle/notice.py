"""NOTICE: where the weights come from, their licence, and what was changed, as licences such as Apache-2.0 ask."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fathom import __version__
from fathom.upcycle.options import Options
from fathom.upcycle.source import Source

_FFN = {
    "dense": "The feed-forward networks are unchanged.",
    "exact": "The neurons of each feed-forward network (but the first layers') were divided between shared and routed "
    "experts, all of which are chosen.",
    "sparse": "The neurons of each feed-forward network (but the first layers') were divided between shared and routed "
    "experts; a router that was fitted to text chooses some of them.",
    "grown": "Each feed-forward network (but the first layers') became the shared experts; routed experts were added "
    "whose output is zero until they are trained.",
}


def sha256(path: Path) -> str:
    """Hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def notice(source: Source, options: Options) -> str:
    """The text of the file."""
    hashes = "\n".join(f"  {path.name}  sha256 {sha256(path)}" for path in source.files)
    changes = [
        "Grouped-query attention was rewritten as multi-head latent attention; the weights of the projections were "
        "combined and reordered, none was trained.",
        _FFN[options.ffn],
        f"Stored as {options.to.upper()}.",
    ]
    if options.mtp:
        changes.append("A multi-token-prediction layer was added: a copy of the last block, untrained.")
    return (
        f"This model is {source.name}, changed by Fathom {__version__}.\n\n"
        f"Source: {source.origin}\n{hashes}\n"
        f"Licence of the source: {source.licence or 'the checkpoint states none'}\n\n"
        "What was changed:\n" + "".join(f"  - {change}\n" for change in changes)
    )
