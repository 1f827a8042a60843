"""The tiny run on many layouts: what the ranks do, and how their curve is compared with that of one process.

from parallel_bodies import EXHAUSTIVE, compare
for result in compare(EXHAUSTIVE, folder): print(result)
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from parallel.distributed import run
from tiny_run import VOCAB, FatalData, make_config, make_data, make_trainer

from fathom.checkpoint.store import read_whole
from fathom.parallel.launch import Place, join
from fathom.parallel.mesh import Layout, Mesh, make_mesh
from fathom.text.dataset import Batch, Sample, collate
from fathom.train.config import TrainConfig
from fathom.train.extend import extend
from fathom.train.loop import Trainer
from fathom.train.pretrain import start_model

STEPS, HALF = 20, 10
Record = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One layout, and the run that it trains. Cases with the same `run` have the same curve."""

    layout: Layout
    schedule: str = "1f1b"
    gemm: str = "fp32"
    dispatch: str = "auto"
    layers: int = 3
    depths: int = 1
    micro_rows: int = 2
    sharding: str = "zero1"
    changes: dict[str, Any] = field(default_factory=dict, hash=False)  # of the recipe; part of the run
    packed: bool = False  # rows of samples, as SFT's

    def __str__(self) -> str:
        at = self.layout
        parts = [f"pipeline {at.pipeline} {self.schedule}"] if at.pipeline > 1 else []
        parts += [f"data {at.data}"] if at.data > 1 else []
        parts += [f"expert {at.expert}"] if at.expert > 1 else []
        parts += [self.sharding] if self.sharding != "zero1" else []
        parts += [self.gemm, f"dispatch {self.dispatch}", f"{self.layers} layers", f"MTP {self.depths}"]
        parts += ["packed samples"] if self.packed else []
        return ", ".join([*parts, *(f"{k} {v}" for k, v in self.changes.items())])

    @property
    def run(self) -> tuple[Any, ...]:
        """What decides the curve."""
        return self.gemm, self.layers, self.depths, self.micro_rows, tuple(self.changes.items()), self.packed

    def config(self, out: Path) -> TrainConfig:
        layout = self.layout
        changes: dict[str, Any] = {
            "run.steps": STEPS, "run.checkpoint_every": HALF, "data.micro_rows": self.micro_rows,
            "precision.gemm": self.gemm, "parallel.dispatch": self.dispatch, "parallel.schedule": self.schedule,
            "parallel.sharding": self.sharding, "parallel.pipeline": layout.pipeline, "parallel.data": layout.data,
            "parallel.expert": layout.expert,
        }  # fmt: skip
        layers, depths = self.layers, self.depths
        return make_config(out, changes | self.changes, num_hidden_layers=layers, num_nextn_predict_layers=depths)


ONE = Layout()


def train(case: Case, out: Path, mesh: Mesh | None, until: int = STEPS) -> list[Record]:
    """The run in `out` from wherever it is to step `until`; what each step logged."""
    torch.set_flush_denormal(True)  # as Trainer.train does
    trainer = make_trainer(case.config(out), mesh)
    if case.packed:
        trainer.data = PackedSamples()
    trainer._claim_folder()
    trainer.model.train()
    records = []
    while trainer.step_done < until:
        record = trainer.step()
        records.append({k: record[k] for k in ("step", "loss", "mtp_loss", "grad_norm", "load_max_over_mean")})
    trainer.store.wait()
    records[-1]["nats"] = trainer.parts.nats(trainer.data.batch(1000))  # how an evaluation sees the model
    torch.set_flush_denormal(False)
    return records


def stop_one(case: Case, folder: str, stopped: int, step: int, moment: str) -> tuple[str, int]:
    """Rank `stopped` gets a signal when it makes the batch of `step`, or when that step is done (its "tick").

    Returns how this rank ends, and after how many steps.
    """
    with join(Place.from_env()) as ranks:
        trainer = make_trainer(case.config(Path(folder) / "run"), make_mesh(case.layout, ranks.device))

        def late() -> None:
            if trainer.step_done == step + 1:
                os.kill(os.getpid(), signal.SIGTERM)

        if ranks.rank == stopped and moment == "batch":
            trainer.data = FatalData(make_data(trainer.config, case.layout.data), "term", step)
        elif ranks.rank == stopped:
            trainer.tick = late
        try:
            trainer.train()
            return "trained to the end", trainer.step_done
        except KeyboardInterrupt:
            return "stopped", trainer.step_done


def start_from(model: str, cases: Sequence[Case], folder: str) -> list[tuple[int, list[str]]]:
    """On every rank: each case started from the checkpoint `model`, and saved before its first step.

    Returns how many parameters this rank has memory for, and their names.
    """
    with join(Place.from_env()) as ranks:
        held = []
        for number, case in enumerate(cases):
            config, mesh = case.config(Path(folder) / str(number)), make_mesh(case.layout, ranks.device)
            config = dataclasses.replace(config, run=dataclasses.replace(config.run, init_from=model))
            data = make_data(config, mesh.data.size)
            trainer = Trainer(config, start_model(config), data, mesh=mesh)
            trainer.save(wait=True)
            own = {n: p for n, p in trainer.model.named_parameters() if not p.is_meta}
            held.append((sum(p.numel() for p in own.values()), sorted(own)))
        return held


def extend_on_ranks(config: TrainConfig, layout: Layout) -> str:
    """An extension on every rank; where its last checkpoint is."""
    with join(Place.from_env()) as ranks:
        return str(extend(config, make_mesh(layout, ranks.device)))


def command(*argv: str) -> int:
    """`fathom ...` on every rank; its exit code."""
    from fathom import cli

    return cli.main(list(argv))


def command_lost(step: int, how: str, *argv: str) -> int:
    """`command`, in which rank 1 is "killed" or falls "asleep" before its update of `step`."""
    own = Trainer._update

    def fatal(self: Trainer, batch: Batch, now: Any) -> Record:
        if self.mesh.rank == 1 and self.step_done == step:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        return own(self, batch, now)

    Trainer._update = fatal  # type: ignore[method-assign]
    return command(*argv)


class PackedSamples:
    """Rows of samples that must not see each other, with padding, as SFT's."""

    def batch(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(step)

        def sample(length: int) -> Sample:
            ids = torch.randint(VOCAB, (length,), generator=generator).tolist()
            return Sample(ids, [i >= 2 for i in range(length)])

        return collate([[sample(5), sample(7)] if row % 2 else [sample(9)] for row in range(8)], 16, pad=0)


Job = tuple[Case, str, int]  # trained in the folder of this name, up to this step


def jobs_body(jobs: Sequence[Job], folder: str) -> list[list[Record]]:
    """On every rank: one run after the other; each goes on from what its folder holds."""
    with join(Place.from_env()) as ranks:
        return [
            train(case, Path(folder) / name, make_mesh(case.layout, ranks.device), until)
            for case, name, until in jobs
        ]  # fmt: skip


def train_on_ranks(jobs: Sequence[Job], folder: Path, limit: float = 600.0) -> list[list[Record]]:
    """All jobs (of one world size) in one set of processes; every rank must have seen the same."""
    (size,) = {case.layout.world for case, _, _ in jobs}
    place = folder / f"ranks-{size}-{len(list(folder.glob('ranks-*')))}"
    place.mkdir(parents=True)
    ended = run(size, jobs_body, list(jobs), str(folder), folder=place, limit=limit)
    assert all(rank.code == 0 for rank in ended.values()), {r: e.err[-2000:] for r, e in ended.items() if e.code}
    first: list[list[Record]] = ended[0].value
    assert all(rank.value == first for rank in ended.values()), "the ranks disagree about a loss, norm or load"
    return first


# ---- comparing


@dataclass(frozen=True)
class Result:
    """Relative differences from one process: the largest over the curve, those of the first step alone (where the
    weights are still the same), the mean of the loss's; and the state at the end."""

    case: Case
    first: float
    mean: float
    loss: float
    mtp: float
    norm: float
    nats: float
    loads_equal: bool
    biases_equal: bool
    weights: float  # largest difference of a weight over the largest weight of its tensor

    def __str__(self) -> str:
        numbers = ("first", "loss", "mean", "mtp", "norm", "nats", "weights")
        off = "  ".join(f"{name} {getattr(self, name):.1e}" for name in numbers)
        loads, biases = ("equal" if same else "DIFFER" for same in (self.loads_equal, self.biases_equal))
        return f"{self.case}: {off}  loads {loads}  biases {biases}"


def against(case: Case, mine: list[Record], out: Path, theirs: list[Record], whole: Path) -> Result:
    """Compare a finished run in `out` with that of one process in `whole`."""
    assert [r["step"] for r in mine] == [r["step"] for r in theirs]

    def off(values: list[tuple[float, float]]) -> float:
        return max((abs(a / b - 1) for a, b in values), default=0.0)

    pairs = list(zip(mine, theirs, strict=True))
    one, other = (dict(read_whole(folder / f"checkpoints/step-{STEPS:08d}")) for folder in (out, whole))
    assert one.keys() == other.keys()
    weights = [n for n in other if n.startswith("model.")]
    biases = [n for n in other if n.startswith("router_bias.")]
    return Result(
        case,
        off([(a[k], b[k]) for a, b in pairs[:1] for k in ("loss", "grad_norm")]),
        abs(sum(a["loss"] / b["loss"] - 1 for a, b in pairs) / len(pairs)),
        off([(a["loss"], b["loss"]) for a, b in pairs]),
        off([both for a, b in pairs for both in zip(a["mtp_loss"], b["mtp_loss"], strict=True)]),
        off([(a["grad_norm"], b["grad_norm"]) for a, b in pairs]),
        off([(mine[-1]["nats"], theirs[-1]["nats"])]),
        all(a["load_max_over_mean"] == b["load_max_over_mean"] for a, b in pairs),
        len(biases) >= 2 and all(torch.equal(one[n], other[n]) for n in biases),
        max(float((one[n] - other[n]).abs().max() / other[n].abs().max()) for n in weights),
    )


def compare(cases: Sequence[Case], folder: Path) -> list[Result]:
    """Train every case, and each of their runs on one process; one set of processes per world size."""
    wholes: dict[tuple[Any, ...], tuple[list[Record], Path]] = {}
    for case in cases:
        if case.run not in wholes:
            out = folder / f"whole-{len(wholes)}"
            alone = dataclasses.replace(case, layout=ONE, schedule="1f1b", dispatch="auto", sharding="zero1")
            wholes[case.run] = train(alone, out, None), out
    curves: dict[int, list[Record]] = {}
    for size in sorted({case.layout.world for case in cases}):
        numbers = [i for i, case in enumerate(cases) if case.layout.world == size]
        found = train_on_ranks([(cases[i], f"case-{i}", STEPS) for i in numbers], folder)
        curves |= dict(zip(numbers, found, strict=True))
    return [against(case, curves[i], folder / f"case-{i}", *wholes[case.run]) for i, case in enumerate(cases)]


# ---- the layouts

MUON: dict[str, Any] = {"optim.kind": "muon", "optim.newton_schulz": "fp32", "optim.qk_clip": 0.8}  # which acts here
TWO = [
    Case(Layout(data=2)),
    Case(Layout(data=2, expert=2)),
    Case(Layout(data=2), sharding="fsdp2"),
    Case(Layout(pipeline=2), "dualpipev"),
    Case(Layout(data=2, expert=2), packed=True),
    Case(Layout(data=2), changes=MUON),
    Case(Layout(data=2), sharding="fsdp2", changes=MUON),
]
FOUR = [
    Case(Layout(pipeline=2, data=2, expert=2), packed=True),
    Case(Layout(data=4, expert=2)),
    Case(Layout(pipeline=2, data=2, expert=2), "1f1b"),
    Case(Layout(pipeline=4), "zb1p", depths=2),
    Case(Layout(pipeline=2, data=2, expert=2), "1f1b", changes=MUON),
]
SUITE = [*TWO, *FOUR]
EIGHT_BITS = [
    Case(Layout(data=2, expert=2), gemm="fp8"),
    Case(Layout(pipeline=2), "zb1p", gemm="fp8"),
]
EXHAUSTIVE = [
    *(Case(Layout(data=n, expert=e)) for n in (2, 4) for e in (1, 2, 4) if n % e == 0),
    *(Case(Layout(data=n, expert=e), gemm=g) for n, e in ((2, 2), (4, 2), (4, 4)) for g in ("bf16", "fp8")),
    Case(Layout(data=2, expert=2), gemm="fp8", dispatch="bf16"),
    Case(Layout(data=2, expert=2), gemm="fp32", dispatch="fp8"),
    *(Case(Layout(pipeline=2), s, depths=d) for s in ("gpipe", "1f1b", "zb1p", "dualpipev") for d in (0, 1, 2)),
    *(Case(Layout(pipeline=4), s) for s in ("gpipe", "1f1b", "zb1p")),
    Case(Layout(pipeline=4), "1f1b", depths=2),
    *(Case(Layout(pipeline=4), s, layers=7, micro_rows=1) for s in ("zb1p", "dualpipev")),
    Case(Layout(pipeline=4), "dualpipev", layers=7, micro_rows=1, depths=2),
    *(
        Case(Layout(pipeline=2, data=2, expert=e), s, micro_rows=1)
        for e in (1, 2)
        for s in ("1f1b", "zb1p", "dualpipev")
    ),
    *(Case(Layout(pipeline=2, data=2, expert=2), s, gemm="fp8", micro_rows=1) for s in ("1f1b", "dualpipev")),
    *(
        Case(Layout(pipeline=2, data=2, expert=2), "zb1p", changes={f"precision.{k}": v for k, v in p.items()})
        for p in ({"recompute": "report"}, {"recompute": "block"})
    ),
    *(Case(Layout(data=n), sharding="fsdp2") for n in (2, 4)),
    Case(Layout(data=4, expert=2), changes={"optim.moments": "bf16"}),
    Case(Layout(pipeline=2, data=2, expert=2), "zb1p", changes={"optim.ema_decay": 0.9}),
    Case(Layout(data=2, expert=2), changes={"balance.method": "aux"}),
    *(Case(Layout(data=4, expert=e), changes=MUON) for e in (1, 2, 4)),
    *(Case(Layout(pipeline=2), s, changes=MUON) for s in ("zb1p", "dualpipev")),
]
