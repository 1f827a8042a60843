"""The needle test as a picture like the report's Figure 8: context length across, depth of the needle down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fathom.evals.needle import Result, table
from fathom.evals.needle_text import WRONG
from fathom.runtime import atomic_write

SCORES = {
    "correct": "answer is the number",
    "picked": f"number likelier than {WRONG} wrong ones (chance {100 // (WRONG + 1)} %)",
}


def draw(models: Sequence[tuple[str, Sequence[Result]]], path: Path) -> None:
    """One column per model, two rows per form of the question: exact match and choice. Cells hold per cent."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    forms = sorted({r.form for _, results in models for r in results})
    rows = [(form, score) for form in forms for score in SCORES]
    size = (1.2 + 5.2 * len(models), 0.4 + 3.4 * len(rows))
    figure, axes = plt.subplots(len(rows), len(models), figsize=size, squeeze=False, constrained_layout=True)
    for row, (form, score) in enumerate(rows):
        for column, (name, results) in enumerate(models):
            axis = axes[row][column]
            lengths, depths, cells = table([r for r in results if r.form == form], score)
            if not lengths:
                axis.set_axis_off()
                continue
            picture = axis.imshow(
                [[100 * x for x in line] for line in cells], vmin=0, vmax=100, cmap="RdYlGn", aspect="auto"
            )
            axis.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths])
            axis.set_yticks(range(len(depths)), [f"{100 * d:.0f} %" for d in depths])
            axis.set_title(f"{name}\n{form}: {SCORES[score]}", fontsize=9)
            axis.set(xlabel="context length (tokens)", ylabel="depth of the needle")
            for y, line in enumerate(cells):
                for x, share in enumerate(line):
                    axis.text(x, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=8)
            figure.colorbar(picture, ax=axis, shrink=0.8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")
    plt.close(figure)
