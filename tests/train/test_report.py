"""Reports of whole, running, crashed and bare runs; the numbers behind the curves; what is refused."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_runs import make_run

from fathom.commands.train import main as command
from fathom.runtime import UserError
from fathom.train.report import (
    count,
    differences,
    distinct_names,
    read_run,
    relative_difference,
    report,
    smooth,
    summary,
)
from fathom.train.report_draw import Axis
from fathom.train.report_panels import panels


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "whole", steps=120, spikes=(60,), ramp=True)


def write_records(folder: Path, records: list[dict[str, Any]], tail: str = "", **run: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"run": {"steps": 10, **run}}))
    (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + tail)
    return folder


def drawn(folders: list[Path], to: Path) -> Path:
    report(folders, to)
    return to


def titles(folder: Path) -> list[str]:
    return [p.title for p in panels([read_run(folder)])]


def test_a_page_is_one_file_with_every_panel(whole: Path, tmp_path: Path) -> None:
    page = drawn([whole], tmp_path / "page.html").read_text()
    wanted = ["Training loss", "Held-out by source", "Gradient norm", "Busiest expert", "Dead experts", "Learning rate",
              "Batch size", "Speed", "Share of this machine", "Load of every expert at"]  # fmt: skip
    for title in wanted:
        assert page.count(f'aria-label="{title}') == 1, title
    svgs = re.findall(r"<svg.*?</svg>", page, flags=re.S)
    assert len(svgs) == len(wanted)
    for svg in svgs:
        ET.fromstring(svg)  # well formed
    links = re.findall(r'(?:src|href)="(?!#|data:)([^"]*)"', page)
    assert not links and "@import" not in page and "<script" not in page  # nothing is loaded from anywhere
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]*)', page))
    assert used <= set(ids)


def test_a_picture(whole: Path, tmp_path: Path) -> None:
    data = drawn([whole], tmp_path / "picture.png").read_bytes()
    assert data.startswith(b"\x89PNG") and int.from_bytes(data[16:20], "big") == 1680


def test_two_runs_are_compared(whole: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", steps=80, of=120, seed=4, lr=1e-3)
    page = drawn([whole, other], tmp_path / "page.html").read_text()
    assert 'aria-label="Loss against whole"' in page and page.count('aria-label="Load of every expert of') == 2
    assert "optim.peak_lr" in page and "0.002" in page and "0.001" in page
    changed = dict(differences([read_run(whole), read_run(other)]))
    assert set(changed) == {"optim.peak_lr", "run.seed"}


def test_runs_of_the_same_name_are_told_apart(whole: Path, tmp_path: Path) -> None:
    twin = make_run(tmp_path / "whole", steps=5)
    folders = [whole, twin, make_run(tmp_path / "third", steps=5)]
    assert [r.name for r in distinct_names([read_run(f) for f in folders], folders)] == [str(whole), str(twin), "third"]


@pytest.mark.parametrize("tail", ['{"step": 4, "lo', "\n", "[1]\n", '{"step": "x"}\n', "\x00\x00"])
def test_a_crashed_run(tmp_path: Path, tail: str) -> None:
    run = write_records(tmp_path / "run", [{"step": s, "tokens": 10 * s, "loss": 5.0 - s} for s in (1, 2, 3)], tail)
    assert [r["step"] for r in read_run(run).records] == [1, 2, 3]
    assert summary(read_run(run))["Steps"] == "3 of 10 (30 %)"
    if tail.startswith("{"):
        assert "3 of 10" in drawn([run], tmp_path / "page.html").read_text()


def test_a_run_without_evaluation_and_with_one_record(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", steps=1, of=100, evaluations=0)
    assert not any("Held-out" in t or "every expert" in t for t in titles(run))
    assert summary(read_run(run))["Held-out mean"] == "not measured"
    report([run], tmp_path / "page.png")


def test_a_log_of_the_first_trainer(tmp_path: Path) -> None:
    """Records before this report existed: no dead experts, no peak, no load matrix."""
    records = [
        {"step": s, "tokens": s * 128, "loss": 4.0, "mtp_loss": [5.0], "lr": 1e-3, "grad_norm": 1.0,
         "load_max_over_mean": [1.5], "tokens_per_second": 100.0} for s in range(1, 5)
    ]  # fmt: skip
    run = write_records(tmp_path / "run", records)
    assert titles(run) == ["Training loss", "Gradient norm", "Busiest expert", "Learning rate", "Speed"]


def test_nan_and_missing_numbers_draw(tmp_path: Path) -> None:
    """A diverged run is a run that somebody wants to look at."""
    records: list[dict[str, Any]] = [{"step": s, "tokens": s * 128, "loss": 4.0, "grad_norm": 1.0} for s in range(1, 9)]
    records[4] |= {"loss": math.nan, "grad_norm": math.inf, "skipped": True}
    records[5] = {"step": 6, "tokens": 6 * 128}
    run = write_records(tmp_path / "run", records)
    report([run], tmp_path / "page.html")
    assert summary(read_run(run))["Loss (smoothed)"] == "4.0000" and "1" in summary(read_run(run))["Skipped steps"]
    report([write_records(tmp_path / "all", [{"step": 1, "tokens": 128, "loss": math.nan}])], tmp_path / "all.html")


def test_smoothing_is_an_unbiased_exponential_average() -> None:
    assert smooth(np.full(20, 3.0)) == pytest.approx(3.0)
    got = smooth(np.array([1.0, 2.0, math.nan, 4.0]), 0.5)
    assert got == pytest.approx([1, (0.5 * 1 + 2) / 1.5, (0.5 * 1 + 2) / 1.5, (0.25 * 1 + 0.5 * 2 + 4) / 1.75])


def test_skipped_steps_do_not_move_the_smoothed_curve(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "a", steps=50, spikes=(20,)))
    assert run.series("loss")[19] > 5 + run.series("loss")[30] - 2
    bumped = smooth(run.series("loss"))[19] - smooth(run.series("loss"))[18]
    calm = smooth(run.applied(run.series("loss")))
    assert bumped > 0.3 and calm[19] == calm[18]


def test_relative_difference_is_in_percent_at_common_steps(tmp_path: Path) -> None:
    a = [{"step": s, "tokens": s, "loss": 2.0} for s in range(1, 9)]
    b = [{"step": s, "tokens": s, "loss": 2.01} for s in range(2, 12, 2)]
    tokens, percent = relative_difference(
        read_run(write_records(tmp_path / "a", a)), read_run(write_records(tmp_path / "b", b))
    )
    assert tokens.tolist() == [2, 4, 6, 8] and percent == pytest.approx(0.5)


def test_how_far_runs_are_apart_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses = {"a": [2.0] * 8, "b": [2.0, 2.0, 2.1, 2.0, 2.0, 1.99, 2.0, 2.0]}
    for name, values in losses.items():
        write_records(tmp_path / name, [{"step": i, "tokens": i, "loss": x} for i, x in enumerate(values, 1)])
    argv = ["report", str(tmp_path / "a"), str(tmp_path / "b"), "--to", str(tmp_path / "x.png"), "--smoothing"]
    assert command([*argv, "0"]) == 0
    said = "b against a: smoothed loss +0.000 % at 8 tokens, at most 5.000 % off (at 3), in the second half 0.500 %\n"
    assert capsys.readouterr().out == said
    assert command([*argv, "0.5"]) == 0
    assert "at most 2.857 % off (at 3)" in capsys.readouterr().out  # (2.1 + 2.0 / 2 + 2.0 / 4) / 1.75
    with pytest.raises(UserError, match=r"--smoothing is 1.0, it must be at least 0 and below 1"):
        command([*argv, "1"])


def test_the_last_load_is_drawn(whole: Path) -> None:
    found = read_run(whole).load()
    assert found is not None and found[1].shape == (6, 32)
    assert found[1].mean(axis=1) == pytest.approx(1.0, abs=1e-3)


def test_summary_says_what_the_log_says(whole: Path) -> None:
    said = summary(read_run(whole))
    assert said["Steps"] == "120 of 120" and said["Skipped steps"] == "1 of those logged"
    assert said["Share of matmul peak"].startswith("44") and said["Dead experts"] == "0"
    assert count(4_505_600) == "4.51M" and count(14.8e12) == "14.8T" and count(12) == "12"


def test_the_unit_of_the_x_axis(whole: Path) -> None:
    axis = Axis.of([read_run(whole)])
    assert (axis.size, axis.name) == (1e3, "thousand tokens seen") and axis.end == pytest.approx(620.544)
    assert axis.x(np.array([2000.0])).tolist() == [2.0]


def test_what_is_no_run_is_refused(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "deepseek_v3"}')
    fresh = write_records(tmp_path / "fresh", [])
    for folders, to, words in (
        ([tmp_path / "gone"], "a.html", "gone is not the folder of a run"),
        ([tmp_path / "empty"], "a.html", "no config.json"),
        ([whole, tmp_path / "model"], "a.html", "not the config of a training run"),
        ([fresh], "a.html", "no step yet"),
        ([whole], "a.pdf", r"must end in \.html or \.png"),
        ([], "a.html", "at least one"),
        ([whole] * 9, "a.html", "9 runs.*at most 8"),
    ):
        with pytest.raises(UserError, match=words):
            report(folders, tmp_path / to)
    assert not (tmp_path / "a.html").exists()


def test_names_are_escaped(tmp_path: Path) -> None:
    run = write_records(tmp_path / "<b>&run", [{"step": 1, "tokens": 1, "loss": 1.0}])
    page = drawn([run], tmp_path / "page.html").read_text()
    assert "<b>" not in page and "&lt;b&gt;&amp;run" in page
