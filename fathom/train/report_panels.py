"""The pictures of a training report: one function per panel, each drawing all runs into one pair of axes."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure

from fathom.train.report import Run, relative_difference
from fathom.train.report_draw import (
    COLOURS,
    STYLE,
    Axis,
    colour,
    colourbar,
    crosses,
    extremes,
    finish,
    line,
    log_if_wide,
    name_of,
    raw,
)

Draw = Callable[[Any, Sequence[Run], Axis], None]


@dataclass(frozen=True)
class Panel:
    """One picture. `wide` ones take a whole row."""

    title: str
    draw: Draw
    wide: bool = False
    height: float = 3.3


def panels(runs: Sequence[Run]) -> list[Panel]:
    """Those for which at least one run has something to show."""

    def has(key: str) -> bool:
        return any(np.isfinite(run.series(key)).any() for run in runs)

    def lists(key: str) -> bool:
        return any(np.isfinite(run.column(key)).any() for run in runs)

    varying = any(len(set(run.series("rows")[np.isfinite(run.series("rows"))])) > 1 for run in runs)
    several, held = len(runs) > 1, any(len(run.heldout()[0]) for run in runs)
    load = [run for run in runs if run.load() is not None]
    wanted: list[tuple[bool, Panel]] = [
        (True, Panel("Training loss", _loss)),
        (several, Panel(f"Loss against {runs[0].name}", _relative)),
        (held, Panel("Held-out mean" if several else "Held-out by source", _heldout)),
        (has("grad_norm"), Panel("Gradient norm", _norm)),
        (lists("load_max_over_mean"), Panel("Busiest expert", _violation)),
        (lists("dead_experts"), Panel("Dead experts", _dead)),
        (has("lr"), Panel("Learning rate", _rate)),
        (varying, Panel("Batch size", _rows)),
        (has("tokens_per_second"), Panel("Speed", _speed)),
        (has("flops_share"), Panel("Share of this machine's matmul peak", _share)),
        *((True, _load_panel(run, several)) for run in load),
    ]  # fmt: skip
    return [panel for ok, panel in wanted if ok]


# ---- the panels ----------------------------------------------------------------------------------------------------


def _loss(ax: Any, runs: Sequence[Run], axis: Axis) -> None:
    tops, bottoms = [], []
    for i, run in enumerate(runs):
        curves = [("", run.series("loss"), "-")]
        curves += [(f" MTP {k}", c, "--") for k, c in enumerate(run.column("mtp_loss").T, 1)]
        for part, values, style in curves:
            tone = colour(i) if len(runs) > 1 or not part else colour(1)
            raw(ax, axis.x(run.tokens), values, tone)
            line(
                ax,
                axis.x(run.tokens),
                run.smoothed(values),
                color=tone,
                linestyle=style,
                label=name_of(runs, i, "next token", part),
            )
            late = run.applied(values)[run.tokens >= 0.04 * run.tokens[-1]]
            late = late[np.isfinite(late)]
            if late.size:
                tops.append(float(np.quantile(late, 0.995)))
                bottoms.append(float(late.min()))
        crosses(ax, axis.x(run.tokens), run.series("loss"), run.skipped, colour(i) if len(runs) > 1 else "#b00020")
    if tops and max(tops) > min(bottoms):  # the first steps would flatten everything else
        margin = 0.06 * (max(tops) - min(bottoms))
        ax.set_ylim(min(bottoms) - margin, max(tops) + margin)
    finish(ax, axis, "nats per token")


def _relative(ax: Any, runs: Sequence[Run], axis: Axis) -> None:
    ax.axhspan(-0.25, 0.25, color="#009E73", alpha=0.12, linewidth=0, label="±0.25 %, the report's FP8 bound")
    ax.axhline(0, color=colour(0), linewidth=1)
    for i, run in enumerate(runs[1:], 1):
        tokens, percent = relative_difference(runs[0], run)
        late = tokens >= 0.03 * tokens[-1] if len(tokens) else tokens.astype(bool)
        line(ax, axis.x(tokens[late]), percent[late], color=colour(i), label=run.name)
    finish(ax, axis, f"difference in loss, smoothed by {runs[0].smoothing:g}, %")


def _heldout(ax: Any, runs: Sequence[Run], axis: Axis) -> None:
    for i, run in enumerate(runs):
        tokens, values = run.heldout()
        if not len(tokens):
            continue
        if len(runs) > 1:
            line(ax, axis.x(tokens), values["mean"], color=colour(i), marker="o", markersize=3.5, label=run.name)
            continue
        for k, (name, curve) in enumerate((n, c) for n, c in values.items() if n != "mean"):
            style = ("-", "--", ":")[k // (len(COLOURS) - 1) % 3]
            line(
                ax, axis.x(tokens), curve, color=colour(k % (len(COLOURS) - 1)), linestyle=style, linewidth=1.2,
                marker="o", markersize=2.5, label=name,
            )  # fmt: skip
        line(ax, axis.x(tokens), values["mean"], color="black", linewidth=2.4, marker="o", markersize=4, label="mean")
    finish(ax, axis, "bits per byte (SFT: nats per token)")


def _norm(ax: Any, runs: Sequence[Run], axis: Axis) -> None:
    for i, run in enumerate(runs):
        values = run.series("grad_norm")
        raw(ax, axis.x(run.tokens), values, colour(i))
        line(ax, axis.x(run.tokens), run.smoothed(values), color=colour(i), label=name_of(runs, i, ""))
        crosses(ax, axis.x(run.tokens), values, run.skipped, colour(i) if len(runs) > 1 else "#b00020")
    clips = {run.config.get("optim", {}).get("clip_norm") for run in runs} - {None, 0.0}
    for clip in clips:
        ax.axhline(clip, color="#5a6470", linewidth=0.9, linestyle=(0, (4, 3)), label=f"clipped to {clip:g}")
    log_if_wide(ax)
    finish(ax, axis, "global L2 norm before clipping")


def _violation(ax: Any, runs: Sequence[Run], axis: Axis) -> None:
    for i, run in enumerate(runs):
        layers, x = run.column("load_max_over_mean"), axis.x(run.tokens)
        smoothed = run.smoothed(layers) if layers.size else layers
        if len(runs) > 1:
            if smoothed.size:
                ax.fill_between(x, *extremes(smoothed), color=colour(i), alpha=0.15, linewidth=0)
                line(ax, x, np.median(smoothed, axis=1), color=colour(i), label=run.name)
            continue
        tones = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, max(layers.shape[1], 1)))
        for k, curve in enumerate(smoothed.T):
            line(ax, x, curve, color=tones[k], linewidth=1.2, label=str(k + 1) if layers.shape[1] <= 8 else None)
        if layers.shape[1] > 8:
            colourbar(ax, layers.shape[1])
    ax.axhline(1, color="#5a6470", linewidth=0.9, linestyle=(0, (4, 3)))
    log_if_wide(ax)
    if len(runs) == 1:
        finish(ax, axis, "its load, x mean", legend="MoE layer")
    else:
        finish(ax, axis, "its load, x mean (median, range of layers)")


def _dead(ax: Any, runs: Sequence[Run], axis: Axis) -> None:
    most = 1.0
    for i, run in enumerate(runs):
        dead = run.column("dead_experts")
        if dead.size:
            total = np.nansum(dead, axis=1)
            line(ax, axis.x(run.tokens), total, drawstyle="steps-post", color=colour(i), label=name_of(runs, i, ""))
            most = max(most, float(total.max()))
    ax.set_ylim(0, 1.08 * most)
    ax.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    finish(ax, axis, "experts without a token, all layers")


def _rate(ax: Any, runs: Sequence[Run], axis: Axis) -> None:
    for i, run in enumerate(runs):
        line(ax, axis.x(run.tokens), run.series("lr"), color=colour(i), label=name_of(runs, i, ""))
    ax.set_ylim(bottom=0)
    ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    finish(ax, axis, "learning rate")


def _rows(ax: Any, runs: Sequence[Run], axis: Axis) -> None:
    for i, run in enumerate(runs):
        line(
            ax,
            axis.x(run.tokens),
            run.series("rows"),
            color=colour(i),
            drawstyle="steps-post",
            label=name_of(runs, i, ""),
        )
    ax.set_ylim(bottom=0)
    finish(ax, axis, "sequences per step")


def _speed(ax: Any, runs: Sequence[Run], axis: Axis) -> None:
    for i, run in enumerate(runs):
        values = run.series("tokens_per_second")
        raw(ax, axis.x(run.tokens), values, colour(i))
        line(ax, axis.x(run.tokens), run.smoothed(values), color=colour(i), label=name_of(runs, i, ""))
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.0f}"))
    finish(ax, axis, "tokens per second")


def _share(ax: Any, runs: Sequence[Run], axis: Axis) -> None:
    for i, run in enumerate(runs):
        values = 100 * run.series("flops_share")
        raw(ax, axis.x(run.tokens), values, colour(i))
        line(ax, axis.x(run.tokens), run.smoothed(values), color=colour(i), label=name_of(runs, i, ""))
    ax.set_ylim(bottom=0)
    finish(ax, axis, "% of measured FLOP/s")


def _load_panel(run: Run, several: bool) -> Panel:
    found = run.load()
    assert found is not None
    tokens, load = found
    layers, experts = load.shape

    def draw(ax: Any, runs: Sequence[Run], axis: Axis) -> None:
        tones = matplotlib.colormaps["RdBu_r"].with_extremes(bad="black")
        with np.errstate(divide="ignore"):
            image = np.ma.masked_invalid(np.log2(load))  # a dead expert is minus infinity: masked
        extent = (0.5, experts + 0.5, layers + 0.5, 0.5)
        shown = ax.imshow(image, aspect="auto", cmap=tones, vmin=-2, vmax=2, extent=extent, interpolation="nearest")
        bar = ax.figure.colorbar(shown, ax=ax, ticks=[-2, -1, 0, 1, 2], pad=0.01, extend="both")
        bar.ax.set_yticklabels(["¼", "½", "1", "2", "4"])
        bar.set_label("x mean load" + (" (black: no token)" if (load == 0).any() else ""))
        bar.outline.set_visible(False)
        ax.grid(False)
        ax.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, nbins=min(layers, 8), min_n_ticks=1))
        ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, nbins=16))
        ax.set(xlabel="expert", ylabel="MoE layer (MTP's last)")

    of = f" of {run.name}" if several else ""
    at = f"{tokens / 1e6:,.1f} million" if tokens < 1e9 else f"{tokens / 1e9:,.1f} billion"
    return Panel(
        f"Load of every expert{of} at {at} tokens", draw, wide=True, height=min(max(1.2 + 0.16 * layers, 2.2), 7.0)
    )


# ---- whole pictures ------------------------------------------------------------------------------------------------


def svg_panels(runs: Sequence[Run]) -> list[tuple[str, bool, str]]:
    """(title, wide, SVG text) of every panel."""
    axis, out = Axis.of(runs), []
    for number, panel in enumerate(panels(runs)):
        with matplotlib.rc_context(STYLE | {"svg.hashsalt": f"panel {number}"}):
            figure = Figure(figsize=(17.2 if panel.wide else 5.6, panel.height), layout="constrained")
            _draw(figure.subplots(), panel, runs, axis)
            text = io.StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        svg = text.getvalue()
        out.append((panel.title, panel.wide, _own_ids(svg[svg.index("<svg") :], f"p{number}-")))
    return out


def _own_ids(svg: str, prefix: str) -> str:
    """Ids of several SVGs in one page must differ."""
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    return re.sub(r'(href="#|url\(#)', rf"\1{prefix}", svg)


def write_png(runs: Sequence[Run], path: Path, columns: int = 3) -> None:
    """All panels in one picture."""
    axis, rows = Axis.of(runs), list(_grid(panels(runs), columns))
    heights = [max(panel.height for panel in row) for row in rows]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6 * columns, sum(heights) + 0.5), layout="constrained")
        figure.suptitle(" · ".join(run.name for run in runs), x=0.008, ha="left", fontsize=14, fontweight="bold")
        parts: Any = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)
        for part, row in zip(parts[:, 0], rows, strict=True):
            places = part.subplots(1, 1 if row[0].wide else columns, squeeze=False)[0]
            for place in places[len(row) :]:
                place.set_visible(False)
            for place, panel in zip(places, row, strict=False):
                _draw(place, panel, runs, axis)
        figure.savefig(path, dpi=100, format="png")


def _draw(ax: Any, panel: Panel, runs: Sequence[Run], axis: Axis) -> None:
    ax.set_title(panel.title, pad=6 if panel.wide else 20)  # a legend of one line fits between title and axes
    panel.draw(ax, runs, axis)


def _grid(items: Sequence[Panel], columns: int) -> Iterator[list[Panel]]:
    """Rows of up to `columns` panels, wide ones alone."""
    narrow = [p for p in items if not p.wide]
    for start in range(0, len(narrow), columns):
        yield narrow[start : start + columns]
    yield from ([p] for p in items if p.wide)
