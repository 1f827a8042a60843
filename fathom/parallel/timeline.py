"""When each action of a schedule runs, given what actions cost: bubbles, peaks of memory, pictures; and `check`.

Messages are free here (Table 2 of the report counts compute only) and a rank never changes the order of its steps, so a
step starts when the rank is free and what it needs is there.

    bubble of a rank = makespan - its own work
    peak of a rank   = (stage, micro-batch) activations that it holds at once: from F to the end of B or W

Table 2 and what the schedules give (PP = number of stages; `tests/parallel/test_schedules.py` holds all of it)
    1f1b       bubble (PP - 1)(F + B), peak PP              always, on every rank
    zb1p       bubble (PP - 1)(F + B - 2W), peak PP         on every rank, if micro >= PP, W <= F and W <= I. Fewer
                                                            micro-batches cost W (PP - micro) more; a W longer than F
                                                            or I costs (PP - 1)(W - min(F, I)) more
    dualpipev  bubble (PP/2 - 1)(F&B + B - 3W), peak PP + 1 on the rank that idles most, if I = F and W <= F. With F&B
                                                            below F + B outer ranks, which have fewer Pairs, idle less.
                                                            F longer than I costs (PP/2 - 1)(F - I) more; I longer
                                                            than F is better than the formula.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fathom.parallel.schedules import Action, Pair, Schedule, Step, parts
from fathom.runtime import UserError, atomic_write

Done = tuple[str, int, int]  # ("F" output | "I" input gradient | "W", stage, micro)


@dataclass(frozen=True)
class Costs:
    """What the actions of one stage cost, in any unit. I = backward - weight; `pair` is F and B run together."""

    forward: float = 1.0
    backward: float = 2.0
    weight: float = 1.0
    pair: float = 3.0

    def of(self, step: Step) -> float:
        """Of one step."""
        if isinstance(step, Pair):
            return self.pair
        return {
            "F": self.forward, "B": self.backward, "I": self.backward - self.weight, "W": self.weight,
        }[step.kind]  # fmt: skip


@dataclass(frozen=True)
class Span:
    """One step on the clock."""

    step: Step
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """`spans[rank]` in order of time, simulated or measured."""

    spans: tuple[tuple[Span, ...], ...]

    @property
    def makespan(self) -> float:
        """Time until the last rank is done."""
        return max(span.end for spans in self.spans for span in spans)

    @property
    def bubbles(self) -> list[float]:
        """Per rank, the time in which it does nothing."""
        return [self.makespan - sum(s.end - s.start for s in spans) for spans in self.spans]


class Stuck(ValueError):
    """Every rank waits for another."""


def simulate(schedule: Schedule, costs: Costs | None = None) -> Timeline:
    """Run the schedule on paper; Stuck if it cannot be run."""
    costs = costs or Costs()
    done: dict[Done, float] = {}
    spans: list[list[Span]] = [[] for _ in range(schedule.ranks)]
    moved = True
    while moved:
        moved = False
        for mine, steps in zip(spans, schedule.steps, strict=True):
            while len(mine) < len(steps):
                step = steps[len(mine)]
                wanted = _needs(schedule, step)
                if not wanted <= done.keys():
                    break
                start = max([mine[-1].end if mine else 0.0, *(done[key] for key in wanted)])
                mine.append(Span(step, start, start + costs.of(step)))
                done.update({key: mine[-1].end for action in parts(step) for key in _gives(action)})
                moved = True
    waiting = {
        rank: str(steps[len(mine)])
        for rank, (mine, steps) in enumerate(zip(spans, schedule.steps, strict=True))
        if len(mine) < len(steps)
    }
    if waiting:
        raise Stuck(f"{schedule.name} stops: no rank can go on (rank: step it waits at) {waiting}")
    return Timeline(tuple(map(tuple, spans)))


def _gives(action: Action) -> list[Done]:
    kinds = ("I", "W") if action.kind == "B" else (action.kind,)
    return [(kind, action.stage, action.micro) for kind in kinds]


def _needs(schedule: Schedule, step: Step) -> set[Done]:
    wanted: set[Done] = set()
    for action in parts(step):
        stage, micro = action.stage, action.micro
        if action.kind == "F" and stage > 0:
            wanted.add(("F", stage - 1, micro))
        if action.kind in "BI":
            wanted.add(("F", stage, micro))
            if stage < schedule.stages - 1:
                wanted.add(("I", stage + 1, micro))
        if action.kind == "W":
            wanted.add(("I", stage, micro))
    return wanted


def peaks(schedule: Schedule) -> list[int]:
    """Per rank, the most (stage, micro-batch) activations held at once."""
    found = []
    for steps in schedule.steps:
        held = most = 0
        for step in steps:
            kinds = [action.kind for action in parts(step)]
            held += kinds.count("F")
            most = max(most, held)
            held -= kinds.count("B") + kinds.count("W")
        found.append(most)
    return found


def peak_bound(schedule: Schedule, rank: int) -> int:
    """What a rank may hold at most: Table 2's column, in activations of one stage for one micro-batch."""
    return {
        "forward": schedule.micro,
        "gpipe": schedule.micro,
        "1f1b": min(schedule.ranks - rank, schedule.micro),
        "zb1p": min(schedule.ranks, schedule.micro),
        "dualpipev": schedule.stages + 1,
    }[schedule.name]


def check(schedule: Schedule) -> list[str]:
    """What is wrong with a schedule, in sentences; nothing if it computes every gradient once and in order."""
    wrong = []
    for rank, steps in enumerate(schedule.steps):
        actions = [action for step in steps for action in parts(step)]
        count = Counter((kind, stage, micro) for action in actions for kind, stage, micro in _gives(action))
        kinds = "F" if schedule.name == "forward" else "FIW"
        wanted = {(k, s, m) for k in kinds for s in schedule.held(rank) for m in range(schedule.micro)}
        wrong += [
            f"rank {rank} lacks {kind} of stage {s}, micro-batch {m}" for kind, s, m in sorted(wanted - set(count))
        ]
        wrong += [f"rank {rank} has {kind} of stage {s}, micro-batch {m}, {count[kind, s, m]} times; at most "
                  f"{int((kind, s, m) in wanted)} is right" for kind, s, m in sorted(count)
                  if count[kind, s, m] > ((kind, s, m) in wanted)]  # fmt: skip
        for stage in schedule.held(rank):
            order = [action.micro for action in actions if action.stage == stage and action.kind in "BW"]
            if order != sorted(order):
                wrong.append(f"weight gradients of stage {stage} come in the order {order}")
        peak = peaks(schedule)[rank]
        if schedule.name != "forward" and peak > peak_bound(schedule, rank):
            wrong.append(f"rank {rank} holds {peak} activations, the limit is {peak_bound(schedule, rank)}")
    try:
        simulate(schedule)
    except Stuck as error:
        wrong.append(str(error))
    return wrong


# ---- picture -------------------------------------------------------------------------------------------------------

_COLOURS = {"F": "#f6c667", "I": "#7fb4d6", "W": "#a8d5a2", "B": "#5a8fc0"}
_NAMES = {"F": "forward", "I": "input gradient", "W": "weight gradient", "B": "backward"}
_DARKER = {"F": "#d9992b", "I": "#4f8cb5", "W": "#6fae68", "B": "#356a9c"}  # the second stage of a rank


def draw(timeline: Timeline, path: Path | str, title: str = "") -> None:
    """A PNG: one row per rank, one box per action with its micro-batch; a Pair is two half boxes in one frame."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    if Path(path).suffix.lower() != ".png":
        raise UserError(f"the drawing is a PNG, {path} has another ending; give a name that ends in .png")
    ranks, longest = len(timeline.spans), max(len(spans) for spans in timeline.spans)
    figure = Figure(figsize=(min(max(8.0, 0.3 * longest), 40.0), 1.0 + 0.4 * ranks))
    axes = figure.add_subplot()
    for rank, spans in enumerate(timeline.spans):
        for span in spans:
            width, actions = span.end - span.start, parts(span.step)
            height = 0.9 / len(actions)
            for row, action in enumerate(actions):
                top = rank - 0.45 + row * height
                colour = (_COLOURS if action.stage < ranks else _DARKER)[action.kind]
                box = Rectangle((span.start, top), width, height, facecolor=colour, edgecolor="white", linewidth=0.3)
                axes.add_patch(box)
                middle = span.start + width / 2, top + height / 2
                axes.text(*middle, str(action.micro), ha="center", va="center", fontsize=7 - len(actions), clip_on=True)
            if len(actions) == 2:
                axes.add_patch(Rectangle((span.start, rank - 0.45), width, 0.9, fill=False, linewidth=0.8))
    axes.set_xlim(0, timeline.makespan)
    axes.set_ylim(ranks - 0.5, -0.5)
    axes.set_yticks(range(ranks), [f"rank {rank}" for rank in range(ranks)])
    axes.set_xlabel("time")
    axes.set_title(title, fontsize=9)
    used = {action.kind for spans in timeline.spans for span in spans for action in parts(span.step)}
    legend = [Patch(color=colour, label=_NAMES[kind]) for kind, colour in _COLOURS.items() if kind in used]
    figure.legend(handles=legend, ncols=len(legend), fontsize=7, loc="lower left")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150, bbox_inches="tight", format="png")
