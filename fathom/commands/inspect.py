"""`fathom inspect`: what a checkpoint holds, by its headers or (--deep) its values. Exit code 1 if anything is off."""

from __future__ import annotations

import json as json_module
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fathom.checkpoint.check import summary
from fathom.checkpoint.inspect import Report, inspect
from fathom.models.resolve import resolve

EXAMPLES = """
  fathom inspect                                 the bundled model
  fathom inspect DIR --deep                      also look for NaN and infinite values
  fathom inspect DIR --json                      for programs
"""


@dataclass(frozen=True)
class Args:
    """Show what a checkpoint holds, from its headers alone."""

    model: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="MODEL")]] = "minnow"
    """A folder (Hugging Face or demo layout), a hub id, or a name that `fathom models` lists."""
    deep: bool = False
    """Read every value and list the tensors with NaN or infinite ones."""
    json: bool = False
    """Print one JSON document."""


def run(args: Args) -> int:
    """Print the report."""
    report = inspect(resolve(args.model), deep=args.deep)
    if args.json:
        print(json_module.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        show(report, Console(soft_wrap=True))
    return 1 if report.problems else 0


def show(report: Report, console: Console) -> None:
    """The report for people."""
    console.print(f"[bold]{escape(report.path)}[/bold]: {report.family}, {report.layout} layout")
    console.print(f"{report.files} files, {_bytes(report.bytes_on_disk)}")
    console.print(
        f"parameters: {report.parameters:,} in the main model, {report.activated:,} activated per token (with the head)"
    )
    if report.mtp_layers:
        copies = "with" if report.mtp_copies else "without"
        console.print(
            f"MTP layers: {report.mtp_layers}, {report.mtp_parameters:,} parameters of their own, "
            f"stored {copies} copies of embedding and head"
        )
    else:
        console.print("MTP layers: none")
    quantization = report.quantization
    if quantization:
        block = "x".join(map(str, quantization["weight_block_size"]))
        console.print(
            f"quantisation: FP8 E4M3, blocks of {block}, scale_fmt {quantization.get('scale_fmt', 'float32')}"
        )
    else:
        console.print("quantisation: none")
    console.print(_table(report))
    for note in report.notes:
        console.print(f"[yellow]note:[/yellow] {escape(note)}")
    if report.problems:
        count = len(report.problems)
        console.print(f"[red]{count} problem{'s' if count > 1 else ''}:[/red] {escape(summary(report.problems))}")


def _table(report: Report) -> Table:
    table = Table(show_footer=True)
    table.add_column("part", "stored")
    table.add_column("tensors", f"{sum(p.tensors for p in report.parts):,}", justify="right")
    table.add_column("parameters", f"{report.stored_parameters:,}", justify="right")
    table.add_column("size", _bytes(sum(p.bytes for p in report.parts)), justify="right")
    table.add_column("dtypes")
    for part in report.parts:
        dtypes = ", ".join(sorted(part.dtypes, key=lambda name: -part.dtypes[name]))
        table.add_row(part.name, f"{part.tensors:,}", f"{part.parameters:,}", _bytes(part.bytes), dtypes)
    return table


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**9 else f"{count / 1e6:.2f} MB"
