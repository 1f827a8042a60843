"""`fathom upcycle`: a Llama-type checkpoint becomes a DeepSeek-V3 checkpoint, without training."""

from __future__ import annotations

import json as json_module
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fathom.runtime import at_home
from fathom.upcycle.open import open_source
from fathom.upcycle.options import Options
from fathom.upcycle.report import Report
from fathom.upcycle.upcycle import upcycle

EXAMPLES = """
  fathom upcycle SmolLM2-135M-Instruct.Q4_1.gguf DST
  fathom upcycle DIR DST --ffn grown --experts 8 --chosen 2 --expert-width 64 --mtp 1
  fathom upcycle DIR DST --rope-width 384 --to fp32 --calibrate encyclopedia.txt
  fathom upcycle DIR DST --ffn sparse --experts 16 --chosen 10
"""


def _int(name: str = "INT") -> object:
    return tyro.conf.arg(metavar=name)


@dataclass(frozen=True)
class Args:
    """Make a DeepSeek-V3 checkpoint of a Llama-type model (llama, mistral, qwen2): MLA, experts, MTP. Nothing is
    trained; what it costs is measured and printed."""

    src: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="SRC")]]
    """A folder in Hugging Face layout, or a GGUF file."""
    dst: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="DST")]]
    """A folder that does not exist yet."""
    to: Literal["bf16", "fp32", "fp8"] = "bf16"
    """How the weights are stored."""
    rope_width: Annotated[int | None, _int()] = None
    """Width of the rotated key, a multiple of the head width. Default: one head width for each key head; twice that
    halves what frequencies are off by."""
    mix: Literal["principal", "none"] = "principal"
    """How key heads share the rotated key: principal components, measured on the text, or as they are."""
    slow_angle: Annotated[float | None, tyro.conf.arg(metavar="RADIANS")] = None
    """Pairs that turn less than this over the whole context are not rotated: a smaller cache. Default: all are."""
    nope_width: Annotated[int | None, _int()] = None
    """Width per head of the part without rotation. Default: up to a head width of 64, 128, 256, or a multiple of 64."""
    values: Literal["auto", "exact", "constant"] = "auto"
    """exact: the latent is the hidden state. constant: it holds the values and a nearly constant number. auto: exact
    while the cache is small."""
    latent: Annotated[int | None, _int()] = None
    """Width of the latent of constant values. Default: what they need, up to a multiple of 64."""
    ffn: Literal["exact", "grown", "sparse", "dense"] = "exact"
    """exact: neurons divided between experts that are all chosen. grown: new experts beside the old FFN, silent until
    trained. sparse: neurons divided, some experts chosen; costs loss. dense: no experts."""
    experts: Annotated[int | None, _int()] = None
    """Routed experts of a layer (8)."""
    chosen: Annotated[int | None, _int()] = None
    """Routed experts chosen per token: grown (2), sparse (three quarters)."""
    shared: Annotated[int | None, _int()] = None
    """Neurons of the shared experts: exact, sparse (about a third)."""
    expert_width: Annotated[int | None, _int()] = None
    """Neurons of a grown expert (a 24th of the FFN's)."""
    dense_layers: Annotated[int | None, _int()] = None
    """The first layers without experts (1)."""
    mtp: Literal[0, 1] = 0
    """1: add a multi-token-prediction layer, a copy of the last block, to be trained."""
    untie: bool = False
    """Write the head as a tensor of its own, where the source shares it with the embedding: vLLM needs that."""
    calibrate: Annotated[Path | None, tyro.conf.arg(metavar="TEXT")] = None
    """A text file to measure on; two thirds are fitted to, the rest is held out. Default: a bundled text."""
    no_verify: bool = False
    """Do not compare the result with the original on held-out text."""
    held_out: Annotated[int | None, _int("TOKENS")] = None
    """How many tokens of it, as far as the text has them (4,096)."""
    row: Annotated[int | None, _int("TOKENS")] = None
    """Length of the rows that are compared. Default: 512, or the whole context with --slow-angle."""
    seed: Annotated[int | None, _int()] = None
    """Of the grown experts and routers, and of the clusters of a sparse split."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args) -> int:
    """Convert and say what it costs."""
    same = {field.name: getattr(args, field.name) for field in fields(Options) if field.name != "verify"}
    options = Options(**same, verify=not args.no_verify)
    source = open_source(at_home(args.src))
    try:
        report = upcycle(source, at_home(args.dst), options)
    finally:
        source.close()
    if args.json:
        print(json_module.dumps(report.to_dict() | {"destination": str(args.dst)}))
    else:
        show(report, args.dst, Console(soft_wrap=True))
    return 0


def show(report: Report, destination: Path, console: Console) -> None:
    """The report for people."""
    r = report
    console.print(f"[bold]{escape(str(destination))}[/bold]: written in {r.seconds:.0f} s")
    table = Table(show_header=False, box=None)
    table.add_row("parameters", f"{r.parameters:,}, {r.activated:,} of them activated per token")
    turning = "" if r.rotated_share == 1 else f" ({r.rotated_share:.0%} of the pairs turn)"
    table.add_row(
        "attention", f"rotated key {r.rope_width}{turning}, latent {r.latent_width}, without rotation {r.nope_width}"
    )
    table.add_row("cache", f"{r.cache_bytes:,} bytes a token in BF16; the original keeps {r.original_cache_bytes:,}")
    table.add_row("values", VALUES[r.values] + _constant(r))
    table.add_row("FFN", r.ffn + _sparse(r))
    console.print(table)
    c = r.comparison
    if c is None:
        console.print("not compared with the original")
        return
    table = Table()
    for title in ("loss, nats a token", "original", "result", "difference"):
        table.add_column(title, justify="left" if title.startswith("loss") else "right")
    for name, a, b in (("all positions", c.original, c.result), ("end of the rows", c.original_end, c.result_end)):
        table.add_row(name, f"{a:.4f}", f"{b:.4f}", f"{b - a:+.4f} ({(b - a) / a:+.2%})")
    console.print(table)
    console.print(
        f"{c.tokens:,} held-out tokens in rows of {c.row}: divergence {c.divergence:.4f} nats, "
        f"the same likeliest token at {c.same_choice:.1%} of positions"
    )


VALUES = {
    "exact": "exact: the latent is the normed hidden state",
    "constant": "constant: the latent holds the values and a nearly constant number",
}


def _constant(r: Report) -> str:
    if r.constant_error is None:
        return ""
    return f"; the constant is off by {r.constant_error:.1%} in the mean, {r.constant_worst:.0%} at most"


def _sparse(r: Report) -> str:
    if r.energy_kept is None:
        return ""
    return f": {r.right_experts:.0%} of the strongest experts are found, {r.energy_kept:.0%} of the energy is kept"
