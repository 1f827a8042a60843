"""The log is cut exactly on resume, the line says what the record says, only rank 0 writes, TensorBoard is optional."""

from __future__ import annotations

import io
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fathom.runtime import UserError
from fathom.train.watch import Watch, cut_log, duration, matmul_peak, progress_line


def record(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step, "tokens": step * 1000, "loss": 5.0 - step / 100, "mtp_loss": [6.0], "lr": 2.2e-4,
        "grad_norm": 1.25, "tokens_per_second": 500.0, "load_max_over_mean": [1.5, 2.5], "dead_experts": [0, 1],
        "gamma": 0.001, "mtp_lambda": 0.3, "rows": 8, "flops_share": 0.41, **more,
    }  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("tail", [b"", b'{"step": 6, "lo', b'{"step": 3}', b"\xff\xfe\n", b"[]\n", b"null\n", b"\n"])
def test_the_log_is_cut_to_the_step(tmp_path: Path, tail: bytes) -> None:
    log = tmp_path / "log.jsonl"
    whole = [json.dumps(record(step)).encode() + b"\n" for step in range(1, 6)]
    log.write_bytes(b"".join(whole) + tail)
    assert cut_log(log, 3) == 3
    assert log.read_bytes() == b"".join(whole[:3])  # the same bytes, not the same numbers


def test_cutting_nothing_leaves_the_file_alone(tmp_path: Path) -> None:
    assert cut_log(tmp_path / "log.jsonl", 3) == 0 and not (tmp_path / "log.jsonl").exists()
    (tmp_path / "log.jsonl").write_text(json.dumps(record(1)) + "\n")
    before = (tmp_path / "log.jsonl").stat().st_ino
    assert cut_log(tmp_path / "log.jsonl", 1) == 1 and (tmp_path / "log.jsonl").stat().st_ino == before


def test_each_step_stands_once_after_a_resume(tmp_path: Path) -> None:
    for start, end in ((0, 7), (4, 9), (9, 10)):
        watch = Watch(tmp_path, 10, total_tokens=10_000, stream=io.StringIO())
        watch.resume(start)
        for step in range(start + 1, end + 1):
            watch.write(record(step))
        watch.close()
    assert lines(tmp_path / "log.jsonl") == list(range(1, 11))


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    said = io.StringIO()
    watch = Watch(tmp_path, 10, total_tokens=10_000, writes=False, tensorboard=True, stream=said)
    watch.resume(0)
    watch.write(record(1))
    watch.note("hello")
    watch.close()
    assert said.getvalue() == "" and not list(tmp_path.iterdir())


def test_the_line_says_what_the_record_says() -> None:
    line = progress_line(record(7, heldout={"a": 1.0, "mean": 1.25}), 10, 10_000, 500.0, "bits/byte")
    for words in ("7/10", "loss 4.9300", "mtp 6.0000", "|g| 1.25", "lr 2.20e-04", "load 2.50x", "500 tok/s",
                  "41% of peak", "left 6 s", "held-out 1.2500 bits/byte"):  # fmt: skip
        assert words in line, words
    assert "SKIPPED" in progress_line(record(7, skipped=True), 10, 10_000, 500.0, "")
    bare = {k: v for k, v in record(3).items() if k not in ("load_max_over_mean", "flops_share", "mtp_loss")}
    assert "load" not in progress_line(bare, 10, 10_000, 500.0, "")


def test_a_terminal_gets_one_line_that_stays_at_evaluations(tmp_path: Path) -> None:
    said = Terminal()
    watch = Watch(tmp_path, 4, total_tokens=4000, stream=said)
    watch.write(record(1))
    watch.write(record(2, heldout={"mean": 1.0}))
    watch.write(record(3))
    watch.note("step 3 was skipped")
    watch.write(record(4))
    watch.close()
    assert said.getvalue().count("\n") == 4 and said.getvalue().count("\r") == 1
    assert said.getvalue().splitlines()[-2].endswith("step 3 was skipped")
    plain = io.StringIO()
    watch = Watch(tmp_path / "b", 4, total_tokens=4000, stream=plain)
    for step in range(1, 5):
        watch.write(record(step))
    watch.close()
    assert plain.getvalue().count("\n") == 4 and "\r" not in plain.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(40, "40 s"), (720, "12 min"), (11100, "3 h 05 min"), (187_200, "2 d 04 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_tensorboard_missing_is_said_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"run\.tensorboard.*pip install tensorboard"):
        Watch(tmp_path, 10, total_tokens=1, tensorboard=True)


def test_tensorboard_has_the_numbers_of_the_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, end in ((0, 3), (2, 4)):  # step 3 is done twice
        watch = Watch(tmp_path, 10, total_tokens=10_000, tensorboard=True, stream=io.StringIO())
        watch.resume(start)
        for step in range(start + 1, end + 1):
            watch.write(record(step, loss=step + start / 10, heldout={"wiki": 1.5, "mean": 1.5}))
        watch.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/mtp_loss_1", "train/grad_norm", "schedule/lr", "heldout/wiki"} <= tags
    assert {"load/max_over_mean_1", "load/dead_experts_1", "speed/share_of_matmul_peak"} <= tags
    seen = [(e.step, round(e.value, 3)) for e in events.Scalars("train/loss")]
    assert seen == [(1, 1.0), (2, 2.0), (3, 3.2), (4, 4.2)]


def test_the_peak_counts_the_matmul_that_it_times(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)  # every look at it a second later
    monkeypatch.setattr("fathom.train.watch.time", clock)
    for size in (64, 128):
        assert matmul_peak(torch.device("cpu"), torch.float32, size=size, seconds=0.0) == 2 * size**3
