"""What a finished model's folder holds, written beside it: so that a damaged one is found before it is loaded.

build.json: {"fingerprint": ..., "files": {name: [bytes, mtime_ns, sha256]}}

As in git's index, a file whose size and time of change are the recorded ones is taken to be unchanged (hashing all of
them would add a good part of a second to every start); any other is hashed. `thorough` hashes all, as
`fathom models fetch` does.
"""

from __future__ import annotations

from pathlib import Path

from fathom.models.fetch import sha256
from fathom.runtime import UserError, read_json, write_json

RECORD = "build.json"


def write_record(folder: Path, fingerprint: str) -> None:
    """Record the files as they are; the last thing that is written into a folder."""
    files = {path.name: [*_status(path), sha256(path)] for path in sorted(folder.iterdir())}
    write_json(folder / RECORD, {"fingerprint": fingerprint, "files": files})


def damage(folder: Path, fingerprint: str, *, thorough: bool = False) -> str | None:
    """What is wrong with a finished folder, None if nothing is."""
    try:
        record = read_json(folder / RECORD)
        if record["fingerprint"] != fingerprint:
            return f"{RECORD} belongs to another build"
        files = {
            str(name): (int(size), int(time), str(digest)) for name, (size, time, digest) in record["files"].items()
        }
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        return f"{RECORD} cannot be read"
    for name, (size, time, digest) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        found = _status(path)
        if found[0] != size:
            return f"{name} has {found[0]:,} bytes, it had {size:,}"
        if (thorough or found[1] != time) and sha256(path) != digest:
            return f"{name} has another content than was written"
    return None


def _status(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
