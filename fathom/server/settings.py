"""What the person who starts the server decides."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from fathom.runtime import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
KEYS_VARIABLE = "FATHOM_API_KEYS"
MAX_KEY_FILE_BYTES = 2**20
MIN_KEY_CHARS = 8


@dataclass(frozen=True)
class Settings:
    """One server. The defaults are those of a test: no keys, no CORS."""

    model_id: str = "minnow"
    """The name that requests give as `model`."""
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """Any of them opens every route; empty: no key is asked for."""
    cors_origins: tuple[str, ...] = ()
    starters: tuple[str, ...] = ()
    """What the chat page offers to begin with."""
    drain_seconds: float = 60.0
    keep_alive_seconds: float = 10.0
    """A stream that has been silent this long sends a comment line, so that nothing between cuts the connection."""
    quiet: bool = False
    """No access log."""

    @property
    def loopback(self) -> bool:
        return self.host in LOOPBACK or self.host.startswith("127.")


def public_name(path_or_name: str) -> str:
    """A folder by its last part (paths of this machine are nobody's business), anything else as it is."""
    folder = Path(path_or_name)
    return folder.resolve().name if folder.is_dir() else path_or_name


def read_keys(file: str | None) -> tuple[str, ...]:
    """Keys of --api-key-file (one a line, # starts a comment line) and of FATHOM_API_KEYS (commas between)."""
    keys = [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",")]
    if file is not None:
        keys += _keys_in(Path(file))
    keys = [key for key in dict.fromkeys(keys) if key]
    for key in keys:  # never shown, not even a part
        if len(key) < MIN_KEY_CHARS or not key.isascii() or not key.isprintable() or " " in key:
            raise UserError(
                f"an API key is unusable: keys are at least {MIN_KEY_CHARS} printable ASCII characters without spaces; "
                "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )
    return tuple(keys)


def _keys_in(file: Path) -> list[str]:
    try:
        if file.stat().st_size > MAX_KEY_FILE_BYTES:
            raise UserError(f"{file} has more than {MAX_KEY_FILE_BYTES} bytes; a key file has one key a line")
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the key file {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"the key file {file} is not UTF-8 text") from None
    keys = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    if not keys:
        raise UserError(f"the key file {file} holds no key; write one a line, or leave --api-key-file out")
    return keys
