"""`fathom train report RUN [RUN ...] --to FILE.html|.png`: a run, or several for comparison, as one page or picture.

    RUN/config.json, RUN/log.jsonl -> Run -> panels (report_panels.py) -> PNG, or one HTML file with SVG inside

Reads only those two files, so it works while a run goes on and after it was killed: a half-written last line is left
out. What a run did not measure has no panel. The page needs no network: styles and pictures are inside the file.

Smoothing is an exponential average, 0.9 per logged step unless asked otherwise: the report's own for Figure 10 (FP8
against BF16), whose steps have a thousand times the tokens of ours.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from fathom.runtime import UserError, atomic_write, read_json, write_text
from fathom.train.watch import duration

Array = np.ndarray[Any, Any]
Record = dict[str, Any]
SMOOTHING = 0.9


@dataclass(frozen=True)
class Run:
    """One run folder as read."""

    name: str
    config: dict[str, Any]
    records: list[Record]
    smoothing: float = SMOOTHING

    @property
    def tokens(self) -> Array:
        """[N] tokens seen at each record."""
        return self.series("tokens")

    def series(self, key: str) -> Array:
        """[N] float64; NaN where a record does not have the number."""
        return np.array([_number(r.get(key)) for r in self.records])

    def applied(self, values: Array) -> Array:
        """The same with NaN at skipped steps, which must not pull the smoothed curve."""
        return np.where(self.skipped, math.nan, values)

    def smoothed(self, values: Array) -> Array:
        """`values` [N] or [N, n] smoothed along the steps, skipped ones left out."""
        if values.ndim == 2:
            return np.stack([self.smoothed(column) for column in values.T], axis=1)
        return smooth(self.applied(values), self.smoothing)

    def column(self, key: str) -> Array:
        """[N, n] float64 of a list in each record; short or absent ones are NaN."""
        lists = [r[key] if isinstance(r.get(key), list) else [] for r in self.records]
        width = max(map(len, lists))
        return np.array([[_number(x) for x in row] + [math.nan] * (width - len(row)) for row in lists]).reshape(
            len(lists), width
        )

    def heldout(self) -> tuple[Array, dict[str, Array]]:
        """(tokens [M], value by source [M]) of the records with an evaluation; "mean" is last."""
        held = [r for r in self.records if isinstance(r.get("heldout"), dict)]
        names = sorted({name for r in held for name in r["heldout"]} - {"mean"})
        values = {n: np.array([_number(r["heldout"].get(n)) for r in held]) for n in [*names, "mean"]}
        return np.array([_number(r.get("tokens")) for r in held]), values

    def load(self) -> tuple[float, Array] | None:
        """(tokens, [layers, experts] load as a multiple of the mean) of the last record that has it."""
        for record in reversed(self.records):
            rows = record.get("load")
            if isinstance(rows, list) and rows and len({len(r) for r in rows}) == 1:
                return _number(record.get("tokens")), np.array(rows, dtype=np.float64)
        return None

    @property
    def skipped(self) -> Array:
        """[N] bool"""
        return np.array([bool(r.get("skipped")) for r in self.records])

    @property
    def steps(self) -> int | None:
        """How many the run is to have, if its config says so."""
        steps = self.config.get("run", {}).get("steps")
        return steps if isinstance(steps, int) else None


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def read_run(folder: Path, smoothing: float = SMOOTHING) -> Run:
    """Config and log of a run folder; lines that are no record (the last one, half written) are left out."""
    log = folder / "log.jsonl"
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} is not the folder of a run (no config.json); give the run.out of a training run")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or not isinstance(config.get("run"), dict):
        raise UserError(f"{folder / 'config.json'} is not the config of a training run; give the run.out of one")
    records: dict[int, Record] = {}
    for line in log.read_bytes().splitlines() if log.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records[record["step"]] = record
    if not records:
        raise UserError(f"{log} has no step yet; the first is written after run.log_every steps")
    return Run(folder.resolve().name, config, [records[step] for step in sorted(records)], smoothing)


def smooth(values: Array, factor: float = SMOOTHING) -> Array:
    """Exponential average along axis 0 that starts without bias; NaN and infinity are passed over."""
    out, average, weight = np.full_like(values, math.nan), 0.0, 0.0
    for i, value in enumerate(values):
        if math.isfinite(value):
            average = factor * average + (1 - factor) * value
            weight = factor * weight + (1 - factor)
        out[i] = average / weight if weight else math.nan
    return out


def relative_difference(base: Run, other: Run) -> tuple[Array, Array]:
    """(tokens, percent) by which `other`'s smoothed loss is above `base`'s, at the steps that both logged."""
    a, b = ({r["step"]: i for i, r in enumerate(run.records)} for run in (base, other))
    steps = sorted(a.keys() & b.keys())
    at_a, at_b = [a[s] for s in steps], [b[s] for s in steps]
    one, two = (run.smoothed(run.series("loss"))[at] for run, at in ((base, at_a), (other, at_b)))
    return base.tokens[at_a], 100 * (two / one - 1)


def summary(run: Run) -> dict[str, str]:
    """The figures that a person asks for first, as text."""
    last, steps = run.records[-1], run.steps
    end = last["step"]
    state = f"{end:,} of {steps:,}" if steps else f"{end:,}"
    loss, *mtp = (run.smoothed(c)[-1] for c in (run.series("loss"), *run.column("mtp_loss").T))
    rate = np.nanmedian(run.series("tokens_per_second")) if np.isfinite(run.series("tokens_per_second")).any() else 0
    share, violation = run.series("flops_share"), run.column("load_max_over_mean")
    tokens, held = run.heldout()
    dead = [x for x in last.get("dead_experts") or [] if isinstance(x, int | float)]
    out = {
        "Steps": state + ("" if not steps or end >= steps else f" ({100 * end / steps:.0f} %)"),
        "Tokens": count(run.tokens[-1]),
        "Loss (smoothed)": f"{loss:.4f}" + "".join(f", MTP {m:.4f}" for m in mtp),
        "Held-out mean": f"{held['mean'][-1]:.4f}" if len(tokens) else "not measured",
        "Tokens per second": f"{rate:,.0f} (median)" if rate else "",
        "Time in steps": duration(run.tokens[-1] / rate) if rate else "",
        "Share of matmul peak": f"{100 * np.nanmedian(share):.1f} % (median)" if np.isfinite(share).any() else "",
        "Busiest expert": f"{np.nanmax(violation[-1]):.2f} x mean (last)" if np.isfinite(violation[-1:]).any() else "",
        "Dead experts": f"{sum(dead):.0f}" if dead else "",
        "Skipped steps": f"{run.skipped.sum()} of those logged" if run.skipped.any() else "none",
    }  # fmt: skip
    return {k: v for k, v in out.items() if v}


def count(tokens: float) -> str:
    """4.5M, 1.33T"""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if tokens >= size:
            return f"{tokens / size:.3g}{letter}"
    return f"{tokens:.0f}"


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Config keys in which the runs differ, with each run's value; run.out is no difference."""
    flat = [_flatten(run.config) for run in runs]
    keys = sorted({key for config in flat for key in config} - {"run.out"})
    rows = [(key, [json.dumps(config[key]) if key in config else "–" for config in flat]) for key in keys]
    return [row for row in rows if len(set(row[1])) > 1]


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in config.items():
        out |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def distinct_names(runs: Sequence[Run], folders: Sequence[Path]) -> list[Run]:
    """Runs whose folders have the same last part are told apart by their whole path."""
    names = [run.name for run in runs]
    return [
        run if names.count(run.name) == 1 else dataclasses.replace(run, name=str(folder))
        for run, folder in zip(runs, folders, strict=True)
    ]


def against_first(runs: Sequence[Run]) -> list[str]:
    """A sentence for each run but the first: how far its smoothed loss is from the first one's."""
    said = []
    for run in runs[1:]:
        tokens, percent = relative_difference(runs[0], run)
        if not np.isfinite(percent).any():
            said.append(f"{run.name} has no step in common with {runs[0].name}")
            continue
        most = int(np.nanargmax(abs(percent)))
        said.append(
            f"{run.name} against {runs[0].name}: smoothed loss {percent[-1]:+.3f} % at {count(tokens[-1])} tokens, "
            f"at most {abs(percent[most]):.3f} % off (at {count(tokens[most])}), "
            f"in the second half {np.nanmax(abs(percent[len(percent) // 2 :])):.3f} %"
        )
    return said


def report(folders: Sequence[Path], to: Path, smoothing: float = SMOOTHING) -> list[Run]:
    """Draw the runs into `to`, a .html page or a .png picture; returns them as they were read."""
    if not 0 <= smoothing < 1:
        raise UserError(f"--smoothing is {smoothing}, it must be at least 0 and below 1")
    if to.suffix not in (".html", ".png"):
        raise UserError(f"--to {to} must end in .html or .png")
    if not folders:
        raise UserError("report needs at least one run folder")
    if len(folders) > 8:
        raise UserError(f"{len(folders)} runs were given; at most 8 can be told apart by colour")
    runs = distinct_names([read_run(folder, smoothing) for folder in folders], folders)
    from fathom.train import report_draw, report_panels  # they need matplotlib, which takes a second to load

    if to.suffix == ".png":
        with atomic_write(to) as temporary:
            report_panels.write_png(runs, temporary)
        return runs
    import jinja2

    template = (Path(__file__).parent / "report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, autoescape=True)
    tables = [summary(run) for run in runs]
    page = environment.from_string(template).render(
        names=[run.name for run in runs],
        smoothing=f"{smoothing:g}",
        colours=[report_draw.colour(i) for i in range(len(runs))],
        rows=[(key, [t.get(key, "–") for t in tables]) for key in dict.fromkeys(k for t in tables for k in t)],
        differences=differences(runs) if len(runs) > 1 else [],
        panels=report_panels.svg_panels(runs),
        configs=[(run.name, json.dumps(run.config, indent=2, ensure_ascii=False)) for run in runs],
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    write_text(to, page)
    return runs
