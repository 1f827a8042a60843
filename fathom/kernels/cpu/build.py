"""Compiles the C++ beside this file once per machine and keeps the library in the user's cache folder.

The name of the library is a hash of everything that decides its content: sources, flags, compiler version, and what the
CPU can do (`-march=native` in a home folder that several machines share). It is written under a temporary name and
renamed: processes that build at the same time do the work twice, and none sees half a file. What lies in the cache is
executed, so a folder that somebody else owns or may write to is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parent
MAIN = {"step": "block.cpp", "train": "train.cpp"}
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-Wno-psabi")
COMPILERS = ("g++", "clang++", "c++")
TIMEOUT = 300  # seconds


class BuildError(Exception):
    """Why there is no library, in one line."""


def library(name: str = "step") -> Path:
    """The compiled library `name`, built now if it is not in the cache. BuildError: it cannot be had here."""
    if os.name != "posix":
        raise BuildError(f"the C++ step needs Linux or macOS, this is {platform.system()}")
    compiler = find_compiler()
    folder = cache_folder()
    path = folder / f"{name}-{_key(compiler, name)}.so"
    if not path.exists():
        _compile(compiler, name, path)
    return path


def find_compiler() -> list[str]:
    """$CXX (which may carry arguments), else the first compiler on the path."""
    chosen = os.environ.get("CXX", "").split()
    if chosen:
        if shutil.which(chosen[0]) is None:
            raise BuildError(f"CXX names {chosen[0]!r}, which is not there; install it or unset CXX")
        return chosen
    for name in COMPILERS:
        if shutil.which(name) is not None:
            return [name]
    raise BuildError(f"no C++ compiler ({', '.join(COMPILERS)}); install g++ or set CXX")


def cache_folder() -> Path:
    """`fathom/kernels` in the user's cache folder, made if need be; only the user may write to it."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
        folder = root / "fathom" / "kernels"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid != os.getuid():
            raise BuildError(f"{folder} belongs to another user; remove it or set XDG_CACHE_HOME")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            folder.chmod(0o700)
    except (OSError, RuntimeError) as error:
        raise BuildError(f"no cache folder for compiled code ({error}); set XDG_CACHE_HOME") from None
    return folder


def flags(name: str) -> tuple[str, ...]:
    """What the compiler is told. The arithmetic of FP8 training has no fused multiply-add but those written as such."""
    return (*FLAGS, "-ffp-contract=off") if name == "train" else FLAGS


def _key(compiler: list[str], name: str) -> str:
    digest = hashlib.sha256()
    for path in [*sorted(SOURCE.glob("*.h")), SOURCE / MAIN[name]]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(repr((flags(name), compiler, _version(compiler), platform.machine(), _cpu_flags())).encode())
    return digest.hexdigest()[:24]


def _version(compiler: list[str]) -> str:
    try:
        done = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=TIMEOUT)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{compiler[0]} does not run ({error})") from None
    return done.stdout + done.stderr


def _cpu_flags() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()


def _compile(compiler: list[str], name: str, path: Path) -> None:
    if sys.stderr.isatty():
        print("fathom: compiling the CPU kernels for this machine, once (about 15 seconds)", file=sys.stderr)
    handle, temporary_name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".so", dir=path.parent)
    os.close(handle)
    temporary = Path(temporary_name)
    command = [*compiler, *flags(name), str(SOURCE / MAIN[name]), "-o", temporary_name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            reason = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "no message")
            raise BuildError(f"{compiler[0]} cannot compile the C++ kernels: {reason.strip()[:300]}")
        temporary.chmod(0o700)
        temporary.replace(path)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{compiler[0]} cannot compile the C++ kernels: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)
