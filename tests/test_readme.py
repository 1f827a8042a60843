"""The README's commands are executed as they stand there, where they need nothing but the bundled model."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.S)
COMMANDS = [
    line.split("  #")[0].strip()
    for kind, block in BLOCKS
    if kind == ""
    for line in block.splitlines()
    if re.match(r"(fathom|echo) ", line) and "/path/to/" not in line
]


def test_the_readme_is_short_and_names_both_commands() -> None:
    assert len(README.splitlines()) <= 150
    assert "make chat" in README and "make test" in README


@pytest.mark.parametrize("command", COMMANDS)
def test_shell_commands_of_the_readme(command: str, tmp_path: Path) -> None:
    fathom = f"{shlex.quote(sys.executable)} -m fathom"
    script = re.sub(r"(^|\| |&& )fathom ", lambda m: f"{m[1]}{fathom} ", command)
    said = "Hello.\n" if command == "fathom chat" else ""  # there is no terminal to talk at
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script], cwd=tmp_path, capture_output=True, text=True, input=said, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() or (tmp_path / "answers.jsonl").exists()


@pytest.mark.parametrize("block", [b for kind, b in BLOCKS if kind == "python"])
def test_python_of_the_readme(block: str) -> None:
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
