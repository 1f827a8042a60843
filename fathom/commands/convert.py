"""`fathom convert`: FP8 to BF16 and back, Hugging Face layout to the official demo's and back."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fathom.checkpoint.convert import Result, convert
from fathom.checkpoint.plan import Options
from fathom.models.resolve import resolve
from fathom.runtime import UserError

EXAMPLES = """
  fathom convert FP8_DIR BF16_DIR --to bf16 --verify
  fathom convert BF16_DIR FP8_DIR --to fp8 --scale-fmt ue8m0
  fathom convert HF_DIR DEMO_DIR --to demo --model-parallel 16
  fathom convert DEMO_DIR HF_DIR --to hf --max-shard-size 4GB
Run the same command again after an interruption and it goes on where it stopped.
"""
UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Args:
    """Convert a checkpoint. The source is only read; memory stays small whatever the size."""

    src: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SRC")]]
    """A folder (Hugging Face or demo layout), a hub id, or a name that `fathom models` lists."""
    dst: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="DST")]]
    """A new folder, or one where the same conversion was interrupted."""
    to: Literal["bf16", "fp8", "demo", "hf"]
    """bf16, fp8: another dtype. demo: layout of the official inference folder. hf: back, or files cut anew."""
    scale_fmt: Literal["ue8m0"] | None = None
    """With --to fp8: round scales up to powers of two (V3.1). Default: FP32 scales (V3)."""
    model_parallel: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """With --to demo: number of ranks (default 1)."""
    mtp: bool = False
    """With --to demo: keep MTP layers, which the official converter drops."""
    untie: bool = False
    """Write the head of a model that ties it to the embedding: vLLM and the demo layout want one."""
    max_shard_size: Annotated[str | None, tyro.conf.arg(metavar="SIZE")] = None
    """With --to hf: largest file, such as 5GB (the default) or 500MiB."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """config.json (or the demo's own) of a demo checkpoint that has none in its folder."""
    verify: bool = False
    """Read everything back and compare with the source."""
    overwrite: bool = False
    """Replace the checkpoint that lies in DST."""


def run(args: Args) -> int:
    """Convert and say what was done."""
    size = None if args.max_shard_size is None else parse_size(args.max_shard_size)
    options = Options(args.to, args.scale_fmt, args.model_parallel, size, args.mtp, args.untie)
    source = resolve(args.src)
    try:
        result = convert(
            source, args.dst, options, verify=args.verify, overwrite=args.overwrite, config_file=args.config
        )
    except KeyboardInterrupt:
        print("fathom: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    report(result, args.dst)
    return 0


def report(result: Result, destination: Path) -> None:
    """Notes on standard error, one line of result on standard output."""
    for note in result.notes:
        print(f"fathom: note: {note}", file=sys.stderr)
    if result.written == 0:
        done = "nothing was left to write"
    else:
        done = f"wrote {result.written / 1e9:.3f} GB in {result.seconds:.1f} s ({result.rate / 1e6:.0f} MB/s)"
    verified = ", verified" if result.verified else ""
    print(f"{destination}: {result.files} files, {result.bytes / 1e9:.3f} GB; {done}{verified}")


def parse_size(text: str) -> int:
    """Bytes from `5GB`, `500 MiB`, `123456`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in UNITS:
        raise UserError(f"--max-shard-size {text!r} is not a size; write it like 5GB, 500MiB or a number of bytes")
    return int(float(match[1]) * UNITS[match[2]])
