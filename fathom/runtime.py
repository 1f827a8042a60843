"""What every other module stands on: error class, whole-or-nothing files, device and dtype choice, progress.

Nothing here keeps state that decides behaviour: callers pass device, dtype and paths.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

MAX_JSON_BYTES = 256 * 2**20

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


class UserError(ValueError):
    """A mistake of the person at the keyboard: one line saying what was given, what the limit is, what to do."""


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is the first accelerator torch knows, else the CPU; any name torch understands is taken as it is."""
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used here ({reason}); try 'auto' or 'cpu'") from None
    return device


def pick_dtype(name: str) -> torch.dtype:
    """A dtype by name (`bfloat16`, `bf16`, ...)."""
    if name not in DTYPES:
        raise UserError(f"dtype {name!r} is not known; use one of {', '.join(DTYPES)}")
    return DTYPES[name]


def fast_bf16(device: torch.device) -> bool:
    """Whether BF16 matmuls beat FP32 on this device.

    A CPU needs AMX for that: with AVX-512 BF16 alone oneDNN's BF16 GEMM was measured at 0.6x of its FP32 GEMM.
    """
    if device.type == "cpu":
        return bool(torch.cpu._is_amx_tile_supported())
    return True


def bf16_products(device: torch.device) -> bool:
    """Whether this device multiplies BF16 at all. On a CPU with AVX-512 BF16 but no AMX the gain depends on the maker:
    0.6x of FP32 (see `fast_bf16`) on one, 2.1x on a Zen 4. So it is used there where BF16 is asked for by name."""
    return fast_bf16(device) or bool(torch.cpu._is_avx512_bf16_supported())


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks instead of returning each to the kernel.

    A training step frees and asks again for the same hundreds of megabytes; page faults then cost more than the
    arithmetic (an elementwise op on 32 MB: 26 ms with the default, 6 ms with this). No effect outside glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_top_pad, 1 << 28)


@contextlib.contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed over it, on failure removed."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another folder") from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _fsync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _fsync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system lets a folder be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def at_home(name: Path | str) -> Path:
    """A path that a person typed: `~` is a home folder. UserError where there is no such person."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise UserError(f"{name} begins with the home folder of nobody here; write the whole path") from None


def write_text(path: Path | str, text: str) -> None:
    """Write a whole text file, or nothing."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def drop_output() -> None:
    """After a BrokenPipeError: the reader of standard output is gone; leave nothing for Python to complain about."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_json(path: Path | str, value: Any) -> None:
    """Write a whole JSON file, or nothing."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Parse a JSON file of at most 256 MiB; a missing or broken one is a UserError that names it."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise UserError(f"{path} has {size} bytes, the limit for a JSON file is {MAX_JSON_BYTES}")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); download or write it again") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be a real JSON file of this kind") from None


@contextlib.contextmanager
def locked(folder: Path, who: str) -> Iterator[None]:
    """Hold `folder`, which is made if need be, for one process; a UserError if another one, `who`, is there.

    The kernel lets go with the process. A folder that was made and is still empty at the end is removed again.
    """
    import fcntl

    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{folder} is a file; give a folder") from None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{who} is writing to {folder}; wait or choose another folder") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def disk_free(path: Path | str) -> int:
    """Bytes free on the file system that holds `path` (or its nearest existing parent)."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def require_disk(path: Path | str, nbytes: int) -> None:
    """Refuse work whose output cannot fit."""
    free = disk_free(path)
    if free < nbytes:
        raise UserError(
            f"{path} needs {nbytes / 2**30:.2f} GiB, only {free / 2**30:.2f} GiB are free; "
            "free some space or choose another folder"
        )


class Advance(Protocol):
    """A running progress bar."""

    def advance(self, amount: float) -> None:
        """Add `amount` units of work done."""


class _Silent:
    def advance(self, amount: float) -> None:
        """Nobody watches."""


@contextlib.contextmanager
def progress(description: str, total: float, unit: str = "B") -> Iterator[Advance]:
    """A progress bar on standard error with rate and time left; silent when nobody watches."""
    if not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = [DownloadColumn(), TransferSpeedColumn()] if unit == "B" else [MofNCompleteColumn(), TextColumn(unit)]
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn(), console=Console(stderr=True)
    )
    with bar:
        task = bar.add_task(description, total=total)

        class _Bar:
            def advance(self, amount: float) -> None:
                bar.advance(task, amount)

        yield _Bar()
