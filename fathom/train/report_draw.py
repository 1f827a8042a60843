"""What all panels of a training report share: colours, the token axis, curves, legends.

Colours are Okabe and Ito's, which people with any common colour blindness can tell apart; when they run out the line
style changes. Legends stand outside the axes, so they never cover a curve. The x axis is always tokens seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np

from fathom.train.report import Array, Run

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6B6B6B", "#000000")
STYLE: Any = {
    "font.size": 9, "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#8a93a0", "axes.labelcolor": "#3c4653",
    "xtick.color": "#5a6470", "ytick.color": "#5a6470", "axes.grid": True, "grid.color": "#e8ebef",
    "grid.linewidth": 0.8, "axes.axisbelow": True, "lines.linewidth": 1.6, "lines.solid_capstyle": "round",
    "legend.frameon": False, "legend.fontsize": 8.5, "svg.fonttype": "path", "figure.facecolor": "white",
}  # fmt: skip
POINTS = 1200  # of a raw curve; more cannot be seen and make the file large


@dataclass(frozen=True)
class Axis:
    """Unit of the x axis, the same in all panels."""

    size: float
    name: str
    end: float  # of the longest run, in this unit

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Axis:
        """The unit in which the longest run's end has one to three digits before the point."""
        end = max(float(np.nanmax(run.tokens)) for run in runs)
        for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
            if end >= size:
                return cls(size, f"{name} tokens seen", end / size)
        return cls(1.0, "tokens seen", end)

    def x(self, tokens: Array) -> Array:
        """Tokens in this unit."""
        return tokens / self.size


def colour(index: int) -> str:
    """Of the run (or source) with this index."""
    return COLOURS[index % len(COLOURS)]


def name_of(runs: Sequence[Run], index: int, alone: str, suffix: str = "") -> str | None:
    """The run's name among several; `alone` (or nothing) for a single one."""
    if len(runs) > 1:
        return runs[index].name + suffix
    return (suffix.strip() or alone) or None


def line(ax: Any, x: Array, y: Array, **options: Any) -> None:
    """A curve; a single point becomes a visible dot."""
    stride = max(1, len(x) // POINTS)
    keep = np.unique(np.append(np.arange(0, len(x), stride), len(x) - 1)) if len(x) else np.arange(0)
    if len(x) == 1:
        options = {"marker": "o", "markersize": 5} | options
    ax.plot(x[keep], y[keep], **options)


def raw(ax: Any, x: Array, y: Array, tone: str) -> None:
    """Unsmoothed values, pale, behind the curve; long ones as the extremes of short stretches."""
    if len(x) > 2 * POINTS:
        pieces = np.array_split(np.arange(len(x)), POINTS)
        picked = [i for p in pieces if np.isfinite(y[p]).any() for i in (p[np.nanargmin(y[p])], p[np.nanargmax(y[p])])]
        keep = np.unique(picked)
        x, y = x[keep], y[keep]
    ax.plot(x, y, color=tone, alpha=0.22, linewidth=0.7, zorder=1)


def crosses(ax: Any, x: Array, y: Array, skipped: Array, tone: str) -> None:
    """Steps that were not applied; crosses of values beyond the axes stand at their upper edge."""
    if not skipped.any():
        return
    from matplotlib.transforms import blended_transform_factory

    edge = blended_transform_factory(ax.transData, ax.transAxes)
    ax.plot(
        x[skipped], np.full(skipped.sum(), 0.985), linestyle="none", marker="x", markersize=6, markeredgewidth=1.6,
        color=tone, transform=edge, label="skipped step", clip_on=False, zorder=5,
    )  # fmt: skip
    ax.vlines(x[skipped], 0, 1, transform=edge, color=tone, alpha=0.18, linewidth=0.8)


def extremes(values: Array) -> tuple[Array, Array]:
    return np.min(values, axis=1), np.max(values, axis=1)


def log_if_wide(ax: Any) -> None:
    """A logarithmic y axis where values span more than a factor of 8."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in ax.lines] or [np.empty(0)])
    values = values[np.isfinite(values) & (values > 0)]
    if values.size and values.max() > 8 * values.min():
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
        ax.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def colourbar(ax: Any, layers: int) -> None:
    tones = matplotlib.colors.LinearSegmentedColormap.from_list(
        "cut", matplotlib.colormaps["viridis"](np.linspace(0, 0.9, 64))
    )
    shown = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(1, layers), tones)
    bar = ax.figure.colorbar(shown, ax=ax, pad=0.02)
    bar.set_label("MoE layer (MTP's last)")
    bar.outline.set_visible(False)


def finish(ax: Any, axis: Axis, unit: str, legend: str | None = None) -> None:
    ax.set(xlabel=axis.name, ylabel=unit, xlim=(-0.01 * axis.end, 1.01 * axis.end))
    handles, labels = ax.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if not once:
        return
    if len(once) <= 3 and sum(map(len, once)) < 52 and legend is None:
        ax.legend(
            once.values(), once.keys(), loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(once), handlelength=1.6,
            columnspacing=1.2, borderaxespad=0.1,
        )  # fmt: skip
    else:
        ax.legend(
            once.values(), [x if len(x) < 26 else x[:24] + "…" for x in once], loc="upper left", title=legend,
            bbox_to_anchor=(1.01, 1.02), handlelength=1.6, alignment="left", title_fontsize=8.5,
        )  # fmt: skip
