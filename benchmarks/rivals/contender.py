"""A contender as serving.py sees it: a process that answers questions, or a reason why there is none."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent


class Unable(Exception):
    """It cannot run, or cannot run this. In one line."""


@dataclass
class Contender:
    """`best`: the variant to measure with, by measurement."""

    key: str
    process: subprocess.Popen[str]
    log: Path
    name: str = ""
    variants: list[str] = field(default_factory=list)
    best: dict[str, str] = field(default_factory=dict)

    @classmethod
    def start(
        cls, key: str, python: str | Path, script: str, options: dict[str, Any], logs: Path, timeout: float
    ) -> Self:
        """Wait until it has loaded its model."""
        log = logs / f"{key}.log"
        threads = str(options["threads"])
        env = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
        with log.open("w") as file:
            process = subprocess.Popen(
                [str(python), str(HERE / script), json.dumps(options)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, env=env,
            )  # fmt: skip
        contender = cls(key, process, log)
        try:
            hello = contender._read(timeout)
        except Unable:
            contender.stop()
            raise
        contender.name, contender.variants = hello["name"], hello["variants"]
        return contender

    def ask(self, timeout: float, **question: Any) -> dict[str, Any]:
        """One question, one answer."""
        assert self.process.stdin is not None
        try:
            print(json.dumps(question), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise Unable(f"it ended; {self._last_words()}") from None
        return self._read(timeout)

    def rate(self, timeout: float, **question: Any) -> tuple[float, list[list[int]]]:
        """Tokens per second, and the tokens."""
        got = self.ask(timeout, **question)
        return got["tokens"] / got["seconds"], got.get("answers", [])

    def stop(self) -> None:
        """Also the way out of a hang."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _read(self, timeout: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout):
                self.process.kill()  # whatever it says later would be taken for the next answer
                raise Unable(f"no answer within {timeout:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise Unable(f"it ended with code {self.process.wait()}; {self._last_words()}")
        got: dict[str, Any] = json.loads(line)
        if "error" in got:
            raise Unable(got["error"])
        return got

    def _last_words(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return f"its last line: {lines[-1][:300]}" if lines else "it said nothing"
