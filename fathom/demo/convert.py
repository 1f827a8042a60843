"""`python -m fathom.demo.convert`: Hugging Face layout to `model{rank}-mp{N}.safetensors`, with the official flags.

    python -m fathom.demo.convert --hf-ckpt-path A --save-path B --n-experts 256 --model-parallel 16

As there, MTP layers are left out, unless --mtp keeps them. Deviations: memory stays small (the original holds every
rank at once), an interrupted run resumes, and config.json and demo_config.json are written beside the weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fathom.checkpoint.convert import Result, convert
from fathom.checkpoint.plan import Options
from fathom.checkpoint.reader import read_config
from fathom.demo.arguments import finish
from fathom.runtime import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the official flags and convert."""
    parser = argparse.ArgumentParser(prog="python -m fathom.demo.convert", description=__doc__.splitlines()[0])
    parser.add_argument("--hf-ckpt-path", type=Path, required=True, help="folder in Hugging Face layout")
    parser.add_argument("--save-path", type=Path, required=True, help="folder to write")
    parser.add_argument("--n-experts", type=int, required=True, help="routed experts of the model")
    parser.add_argument("--model-parallel", type=int, required=True, help="number of ranks")
    parser.add_argument("--mtp", action="store_true", help="keep MTP layers (ours; the official command drops them)")
    args = parser.parse_args(argv)

    def work() -> Result:
        experts = read_config(args.hf_ckpt_path).n_routed_experts
        if args.n_experts != experts:
            raise UserError(f"--n-experts is {args.n_experts}, the config of {args.hf_ckpt_path} says {experts}")
        return convert(
            args.hf_ckpt_path, args.save_path, Options("demo", model_parallel=args.model_parallel, mtp=args.mtp)
        )

    return finish(work, args.save_path)


if __name__ == "__main__":
    sys.exit(main())
