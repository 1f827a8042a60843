"""`torchrun -m fathom.demo.generate`: answer with a model split over processes, with the official flags.

    torchrun --nproc-per-node 8 -m fathom.demo.generate --ckpt-path B --config config.json --interactive
    python -m fathom.demo.generate --ckpt-path B --config config.json --input-file prompts.txt     (one process, mp1)

Every rank loads model{rank}-mp{N}.safetensors and runs the naive generator on its part of the model. Rank 0 alone knows
texts: it tells the others token ids, and they come out with the same token each step (checked).

As there: each line of the input file is a user's message, answers come as "Prompt:" / "Completion:" pairs, /clear
forgets the conversation and /exit leaves, the seed is fixed.
Deviations
 1. Prompts are answered one after the other, not as one padded batch, so there is no limit on their number.
 2. A prompt's answer does not depend on its neighbours: each has a seed made from --seed and its number.
 3. Text is shown as it comes. Ctrl-D leaves, too. Giving both --interactive and --input-file is refused.
 4. A missing file or process is an error with a time limit, and names it; there it is a hang.
 5. --seed, --dtype, --device and --timeout-seconds are ours; --config is also a Hugging Face config.json.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from fathom.config import ModelConfig
from fathom.demo import rank_file
from fathom.demo.arguments import Parser, complain
from fathom.demo.dialogue import Talk, read_prompts
from fathom.engine.naive import Step, generate_tokens
from fathom.engine.params import SamplingParams
from fathom.engine.sampling import derive_seed
from fathom.model.transformer import DeepseekV3
from fathom.parallel.launch import Place, Ranks, join
from fathom.parallel.watch import LostRank
from fathom.runtime import UserError, drop_output, pick_dtype

OFFICIAL_SEED = 965


def parser() -> argparse.ArgumentParser:
    """The official flags, then ours."""
    out = Parser(prog="python -m fathom.demo.generate", description=(__doc__ or "").splitlines()[0])
    out.add_argument("--ckpt-path", type=Path, required=True, help="folder with model{rank}-mp{N}.safetensors")
    out.add_argument("--config", type=Path, required=True, help="the demo's config, or a Hugging Face config.json")
    out.add_argument("--input-file", type=Path, help="a user's message per line")
    out.add_argument("--interactive", action="store_true", help="a conversation on standard input")
    out.add_argument("--max-new-tokens", type=int, default=200, help="longest answer (default 200)")
    out.add_argument("--temperature", type=float, default=0.2, help="0 is greedy (default 0.2)")
    out.add_argument("--seed", type=int, default=OFFICIAL_SEED, help=f"of the sampling (default {OFFICIAL_SEED})")
    out.add_argument("--dtype", default="auto", help="auto, bfloat16, float32 or float16")
    out.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    out.add_argument(
        "--timeout-seconds", type=float, help="longest wait for another process (default 60 to start, 300 in a step)"
    )
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0, 2 a person's mistake (said by one rank), 1 another rank is lost, 130 interrupted."""
    speaks = os.environ.get("RANK", "0") == "0"
    try:
        args = parser().parse_args(argv)
        params = check(args)
        with join(Place.from_env(), args.device, args.timeout_seconds) as ranks:
            run(ranks, args, params)
            sys.stdout.flush()
    except LostRank as lost:
        if lost.speaks:
            complain(lost)
        return 1
    except UserError as error:
        return complain(error) if speaks else 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output is gone
        drop_output()
        return 141
    return 0


def check(args: argparse.Namespace) -> SamplingParams:
    """The flags that can be judged before anything is read."""
    if bool(args.input_file) == args.interactive:
        raise UserError(
            f"{'both' if args.interactive else 'neither'} of --input-file and --interactive given; give one"
        )
    if args.timeout_seconds is not None and not 0 < args.timeout_seconds <= 86400:
        raise UserError(f"--timeout-seconds is {args.timeout_seconds}; it must be above 0 and at most 86400")
    if args.dtype != "auto":
        pick_dtype(args.dtype)
    return SamplingParams(temperature=args.temperature, max_tokens=args.max_new_tokens, seed=args.seed)


def run(ranks: Ranks, args: argparse.Namespace, params: SamplingParams) -> None:
    """Load on every rank, then let rank 0 lead."""

    def prepare() -> tuple[DeepseekV3, Talk | None]:
        path = rank_file.find(args.ckpt_path, ranks.rank, ranks.size)
        config = ModelConfig.from_json(args.config)
        talk = None
        if ranks.rank == 0:
            prompts = read_prompts(args.input_file) if args.input_file else None
            talk = Talk.open(args.ckpt_path, config, prompts)
        return rank_file.load(config, path, ranks, args.dtype), talk

    model, talk = ranks.prepare("end of loading", prepare)
    if talk is None:
        follow(ranks, model, params)
    else:
        lead(ranks, model, params, talk)


def lead(ranks: Ranks, model: DeepseekV3, params: SamplingParams, talk: Talk) -> None:
    """Rank 0: each of the talk's prompts is told to the others, answered with them, and shown."""
    for number, (ids, eos) in enumerate(talk.prompts()):
        order = {"ids": ids, "eos": eos, "number": number}
        ranks.tell(order)
        with contextlib.closing(answer(ranks, model, params, order)) as steps:
            talk.show(steps)
    ranks.tell(None)


def follow(ranks: Ranks, model: DeepseekV3, params: SamplingParams) -> None:
    """The other ranks: carry out orders until there are no more."""
    while (order := ranks.hear()) is not None:
        for _ in answer(ranks, model, params, order):
            pass


def answer(
    ranks: Ranks, model: DeepseekV3, params: SamplingParams, order: dict[str, Any]
) -> Generator[Step, None, None]:
    """The tokens of one answer, the same on every rank."""
    seed = derive_seed(params.seed or 0, order["number"])
    for step in generate_tokens(model, order["ids"], params.replace(seed=seed), eos_ids=order["eos"]):
        if ranks.group is not None and not ranks.group.agree(step.token_id):
            raise UserError(
                f"the ranks do not agree on a token (rank {ranks.rank} has {step.token_id}): their files or their "
                "devices differ; convert again, and use one kind of device"
            )
        ranks.watch.tick()
        yield step


if __name__ == "__main__":
    sys.exit(main())
