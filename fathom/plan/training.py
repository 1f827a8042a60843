"""`fathom train ... --dry-run`: everything a run will take, as one dict, and as tables for a person.

The dict has bytes, FLOPs and seconds in plain numbers. The tables are at most 100 columns wide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import IO, Any

from fathom.model.cost import parameters, training_flops_per_token
from fathom.plan.job import Job
from fathom.plan.layout import held, holding
from fathom.plan.memory import in_flight, memory
from fathom.plan.timing import (
    DEVICES,
    REPORT_HOURS,
    REPORT_TOKENS,
    Device,
    bubble,
    expected_share,
    implied_share,
    reference_peak,
    report_share,
)
from fathom.plan.traffic import traffic

V3_PARAMETERS = 671_026_419_200
WIDTH = 100


def plan(job: Job, on: Device, share: float | None = None) -> dict[str, Any]:
    """`share` of the device's peak that the run is expected to reach; None: the one that the report's hours imply."""
    share = expected_share(job, report_share() if share is None else share)
    per_token = training_flops_per_token(job.model, job.length)
    total, step = per_token * job.tokens, per_token * job.step_tokens
    peak = reference_peak(job, on)
    ranks = [_rank(job, on, rank) for rank in range(job.pipeline)]
    seconds = step / (job.world * peak * share)
    between = max(r["sent_per_step"]["all-to-all between nodes, two hops"] for r in ranks)
    out: dict[str, Any] = {
        "parameters": dataclasses.asdict(parameters(job.model)),
        "tokens": job.tokens,
        "training_flops": total,
        "layout": {
            "devices": job.world, "pipeline": job.pipeline, "data": job.data, "expert": job.expert,
            "expert_copies": job.expert_copies, "schedule": job.schedule, "stages": job.stages,
            "micro_batches": job.micro_batches, "sharding": job.sharding, "gemm": job.gemm, "recompute": job.recompute,
            "dispatch": job.dispatch, "bubble": bubble(job),
        },
        "ranks": ranks,
        "flops": {"per_token": per_token, "per_step": step, "total": total},
        "device": {"name": on.name, "peak": peak, "memory": on.memory, "source": on.source},
        "time": {
            "share_of_peak": share, "step_seconds": seconds, "tokens_per_second": job.step_tokens / seconds,
            "network_seconds": between / on.network if on.network else 0.0,
            "device_hours": total / (peak * share) / 3600, "days": total / (peak * share * job.world) / 86400,
        },
    }  # fmt: skip
    if parameters(job.model).total == V3_PARAMETERS and job.length == 4096:
        peak = DEVICES["h800"].flops["bf16"]
        counted = {
            "with MTP": training_flops_per_token(job.model, 4096),
            "main model": training_flops_per_token(job.model, 4096, mtp=False),
            # a row of 2 T - 1 has T tokens of context on average
            "main model, attention not halved": training_flops_per_token(job.model, 2 * 4096 - 1, mtp=False),
        }
        shares = {name: implied_share(n * REPORT_TOKENS, REPORT_HOURS, peak) for name, n in counted.items()}
        out["report"] = {"tokens": REPORT_TOKENS, "h800_hours": REPORT_HOURS, "implied_share_of_peak": shares}
    return out


def _rank(job: Job, on: Device, rank: int) -> dict[str, Any]:
    have, items, sent = holding(job, rank), memory(job, rank), traffic(job, rank, on.per_node)
    return {
        "pipeline_rank": rank,
        "stages": [s.index for s in held(job, rank)],
        "layers": [[s.layers.start, s.layers.stop - 1] for s in held(job, rank) if s.layers],
        "embedding": any(s.first for s in held(job, rank)),
        "head_and_mtp": any(s.last for s in held(job, rank)),
        "parameters": {"replicated": have.plain, "routed": have.routed},
        "in_flight": in_flight(job, rank),
        "memory": items | {"total": sum(items.values())},
        "sent_per_step": sent,
    }


# ---- for a person --------------------------------------------------------------------------------------------------


def show(what: dict[str, Any], stream: IO[str] | None = None) -> None:
    """Print the tables."""
    from rich.console import Console

    console = Console(file=stream, width=WIDTH) if stream else Console(width=WIDTH)
    for table in tables(what):
        console.print(table)


def tables(what: dict[str, Any]) -> list[Any]:
    """Model, devices, memory and traffic, compute and time."""
    return [_model(what), _devices(what), _compute(what)]


def _model(what: dict[str, Any]) -> Any:
    p, layout = what["parameters"], what["layout"]
    table = _table("Model and layout", ("", "left"), ("", "left"))
    micro = _n(layout["micro_batches"], "micro-batch", "micro-batches") + " a step"
    table.add_row("parameters", f"{p['total']:,} ({_big(p['activated'])} activated), MTP {_big(p['mtp'])}")
    table.add_row("tokens", _big(what["tokens"]))
    table.add_row(
        "devices",
        f"{layout['devices']} = pipeline {layout['pipeline']} x data {layout['data']}; "
        f"experts over {_n(layout['expert'], 'rank')}, "
        f"{_n(layout['expert_copies'], 'copy', 'copies')}",
    )
    table.add_row(
        "pipeline",
        f"{layout['schedule']}, {layout['stages']} stages, {micro}, bubble {100 * layout['bubble']:.1f} %"
        if layout["pipeline"] > 1 else f"none; {micro}",
    )  # fmt: skip
    table.add_row(
        "precision",
        f"GEMMs {layout['gemm']}, recompute {layout['recompute']}, dispatch {layout['dispatch']}, {layout['sharding']}",
    )
    return table


def _devices(what: dict[str, Any]) -> Any:
    shown = _few(what["ranks"])
    table = _table("One device of pipeline rank", ("", "left"), *((str(r["pipeline_rank"]), "right") for r in shown))
    table.add_row("layers", *(_layers(r) for r in shown))
    table.add_row("parameters, replicated", *(_big(r["parameters"]["replicated"]) for r in shown))
    table.add_row("parameters, routed experts", *(_big(r["parameters"]["routed"]) for r in shown))
    table.add_row("activations in flight", *(str(r["in_flight"]) for r in shown), end_section=True)
    limit = what["device"]["memory"]
    for item in shown[0]["memory"]:
        if any(r["memory"][item] for r in shown):
            last = item == "total"
            style = "bold" if last else ""
            cells = [_bytes(r["memory"][item]) for r in shown]
            if last and limit:
                cells = [
                    f"[red]{c}[/red]" if r["memory"][item] > limit else c for c, r in zip(cells, shown, strict=True)
                ]
            table.add_row(f"memory: {item}", *cells, style=style, end_section=last)
    for item in shown[0]["sent_per_step"]:
        if any(r["sent_per_step"][item] for r in shown):
            table.add_row(f"sent a step: {item}", *(_bytes(r["sent_per_step"][item]) for r in shown))
    return table


def _compute(what: dict[str, Any]) -> Any:
    on, time, flops = what["device"], what["time"], what["flops"]
    table = _table(f"Time on {on['name']}", ("", "left"), ("", "left"))
    table.add_row(
        "FLOPs",
        f"{_big(flops['per_token'])} per token, {flops['per_step']:.3g} per step, {flops['total']:.3g} in all",
    )
    table.add_row("peak", f"{on['peak'] / 1e12:,.3g} TFLOP/s ({on['source']})")
    table.add_row("expected", f"{100 * time['share_of_peak']:.1f} % of peak: {time['step_seconds']:.3g} s a step, "
                  f"{time['tokens_per_second']:,.0f} tokens/s")  # fmt: skip
    table.add_row("", f"{_count(time['device_hours'])} device hours, {_span(time['days'])}")
    wait = time["network_seconds"]
    if wait:
        table.add_row("network", f"{wait:.3g} s a step for the all-to-all between nodes (two hops), if nothing else "
                      "slows it; hidden as far as it overlaps with compute")  # fmt: skip
    most = max(r["memory"]["total"] for r in what["ranks"])
    if on["memory"]:
        verdict = "fits" if most <= on["memory"] else "[red]does not fit[/red]"
        table.add_row("memory", f"{_bytes(most)} of {_bytes(on['memory'])} on the fullest device: {verdict}")
    if "report" in what:
        shares = what["report"]["implied_share_of_peak"]
        table.add_row(
            "the report",
            "2,664K H800 hours for 14.8T tokens imply "
            + ", ".join(f"{100 * value:.1f} % ({name})" for name, value in shares.items()),
        )
    return table


def _table(title: str, *columns: tuple[str, str]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False,
        show_header=any(name for name, _ in columns),
    )  # fmt: skip
    for name, justify in columns:
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table


def _few(ranks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """First, last, fullest, and one from the middle: at most four columns."""
    if len(ranks) <= 4:
        return list(ranks)
    fullest = max(range(len(ranks)), key=lambda i: ranks[i]["memory"]["total"])
    return [ranks[i] for i in sorted({0, len(ranks) // 2, len(ranks) - 1, fullest})]


def _layers(rank: dict[str, Any]) -> str:
    parts = [f"{a}-{b}" if b > a else f"{a}" for a, b in rank["layers"]]
    return " + ".join((["emb"] if rank["embedding"] else []) + parts + (["head"] if rank["head_and_mtp"] else []))


def _n(count: int, one: str, many: str = "") -> str:
    return f"{count} {one}" if count == 1 else f"{count} {many or one + 's'}"


def _count(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _big(number: float) -> str:
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.4g}{letter}"
    return f"{number:.4g}"


def _bytes(number: float) -> str:
    return f"{number / 2**30:,.1f} GiB" if number >= 0.1 * 2**30 else f"{number / 2**20:,.1f} MiB"


def _span(days: float) -> str:
    if days >= 2:
        return f"{days:,.1f} days"
    return f"{24 * days:.1f} hours" if days * 24 >= 1.5 else f"{1440 * days:.0f} minutes"
