"""What the official commands share: argparse flags as they are written there, errors as one line and exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from fathom.checkpoint.convert import Result
from fathom.runtime import UserError


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are a UserError, for commands that run in several processes and must speak once."""

    def error(self, message: str) -> NoReturn:
        """Instead of printing and leaving."""
        raise UserError(f"{message}; see {self.prog} --help")


def complain(error: Exception) -> int:
    """One line for a person's mistake; returns the exit code."""
    print(f"fathom: error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def finish(work: Callable[[], Result], destination: Path) -> int:
    """Run a conversion and say what it did, as the official commands' users expect: one line."""
    try:
        result = work()
    except UserError as error:
        return complain(error)
    except KeyboardInterrupt:
        print("fathom: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    for note in result.notes:
        print(f"fathom: note: {note}", file=sys.stderr)
    print(f"{destination}: {result.files} files, {result.bytes / 1e9:.3f} GB in {result.seconds:.1f} s")
    return 0
