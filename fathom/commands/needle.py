"""`fathom needle`: hide a number in a long text, ask for it; lengths x depths, as a table and a heat map.

Writes to --out: model-1.jsonl, model-2.jsonl, ... (one line per case), needle.json (shares by length) and needle.png.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fathom.engine.llm import LLM
from fathom.evals.needle import Grid, Result, check_lengths, fingerprint, measure, summary, table
from fathom.evals.needle_text import Asker, Form, Haystack
from fathom.runtime import UserError, write_json

EXAMPLES = """
  fathom needle minnow --out runs/needle --quick
  fathom needle runs/minnow-extend/phase-2/export runs/minnow-pretrain/export --beyond --out runs/needle
  fathom needle DIR --lengths 1024 4096 --depths 0 0.5 1 --trials 10 --form copy --haystack book.txt --out runs/needle
"""
MODELS = 4
COUNT = 6  # lengths by default: the context, its half, its quarter, ...
SHORTEST = 128
DEPTHS = 8
MAX_RUNNING = 16


@dataclass(frozen=True)
class Args:
    """Needle in a haystack; several models side by side, such as with and without the long-context extension."""

    models: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODEL")]]
    """Folders in Hugging Face layout, hub ids, or names that `fathom models` lists."""
    out: Path
    """Folder for results and pictures; an interrupted run goes on there."""
    haystack: Path = Path("data/minnow/heldout.jsonl")
    """Text that no model was trained on: .jsonl with a "text" per line, or plain text."""
    lengths: tuple[int, ...] = ()
    """Tokens of prompt and answer; default: the first model's context, its half, its quarter, ..."""
    depths: tuple[float, ...] = ()
    """Where the needle is, 0 (begin) to 1 (end); default: 8 places."""
    trials: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Cases of each length and depth; default: 4."""
    form: Literal["auto", "copy", "chat", "both"] = "auto"
    """copy: complete the needle's sentence; chat: answer a question; auto: both where there is a chat template."""
    quick: bool = False
    """4 lengths, 3 depths and 2 trials, where none are given."""
    beyond: bool = False
    """Measure lengths above a model's context too, at positions that it never saw."""
    seed: int = 0
    """Of numbers, cities and the order of the text."""
    dtype: str = "auto"
    """auto, bfloat16, float32 or float16."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""


def run(args: Args) -> int:
    """Check everything, then measure model by model."""
    if not 1 <= len(args.models) <= MODELS:
        raise UserError(f"{len(args.models)} models were given; the picture has room for 1 to {MODELS}")
    limits = [_context(model) for model in args.models]
    documents = read_haystack(args.haystack)
    grids = [make_grid(args, limits[0], ("copy",)) for _ in args.models]
    if not args.beyond:
        for model, limit, grid in zip(args.models, limits, grids, strict=True):
            check_lengths(grid, limit, model)
    measured: list[tuple[str, list[Result]]] = []
    report: dict[str, Any] = {}
    for number, model in enumerate(args.models, 1):
        llm = open_model(model, max(grids[0].lengths), args)
        grid = make_grid(args, limits[0], forms(args.form, llm))
        asker = Asker(Haystack(documents, llm.tokenizer, str(args.haystack)), llm.template, args.seed)
        results = measure(llm, grid, asker, args.out / f"model-{number}.jsonl", _identity(model, args.dtype))
        measured.append((model, results))
        report[model] = summary(results)
        print("\n".join(lines(model, results)), flush=True)
    write_json(args.out / "needle.json", report)
    from fathom.evals.needle_map import draw  # matplotlib takes a second to load

    draw(measured, args.out / "needle.png")
    print(f"{args.out / 'needle.png'}", file=sys.stderr)
    return 0


def make_grid(args: Args, context: int, which: tuple[Form, ...]) -> Grid:
    """The grid that the flags describe, for a model of `context` tokens."""
    halves = [context >> k for k in range(4 if args.quick else COUNT)]
    lengths = args.lengths or tuple(n for n in reversed(halves) if n >= min(SHORTEST, context))
    places = 3 if args.quick else DEPTHS
    depths = args.depths or tuple(round(k / (places - 1), 3) for k in range(places))
    trials = args.trials if args.trials is not None else 2 if args.quick else 4
    return Grid(lengths, depths, trials, which, args.seed)


def forms(form: str, llm: LLM) -> tuple[Form, ...]:
    """What a model can be asked."""
    if form == "copy" or (form == "auto" and llm.template is None):
        return ("copy",)
    if llm.template is None:
        raise UserError(f"{llm.name} has no chat template, which --form {form} needs; use --form copy")
    return ("chat",) if form == "chat" else ("chat", "copy")


def open_model(model: str, longest: int, args: Args) -> LLM:
    """A model whose context holds `longest` tokens, trained on so many or not."""
    from fathom.checkpoint.reader import load_model
    from fathom.engine.setup import loading_dtype
    from fathom.model.context import set_config
    from fathom.models.resolve import resolve
    from fathom.text.chat import ChatTemplate
    from fathom.text.tokenizer import Tokenizer

    folder = resolve(model)
    tokenizer, template = Tokenizer.from_pretrained(folder), ChatTemplate.from_pretrained(folder)
    weights = load_model(str(folder), loading_dtype(args.dtype, args.device, "auto"), args.device)
    if longest > weights.config.max_position_embeddings:
        set_config(weights, weights.config.replace(max_position_embeddings=longest))
    own = (
        None if template.note and args.form == "auto" else template
    )  # a base model was not trained on the built-in one
    return LLM.from_parts(weights, tokenizer, own, name=model, max_running=MAX_RUNNING)


def read_haystack(path: Path) -> list[str]:
    """Its documents."""
    if not path.exists():
        raise UserError(
            f"{path} does not exist; `fathom corpus build --out data/minnow` makes it, or give a text with --haystack"
        )
    if path.suffix == ".jsonl":
        from fathom.text.dataset import read_jsonl

        texts = [record.get("text") for record in read_jsonl(path)]
        documents = [text for text in texts if isinstance(text, str)]
    else:
        try:
            documents = [path.read_text(encoding="utf-8")]
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 ({error}); convert it") from None
    if not documents:
        raise UserError(f'{path} holds no text; each line of a .jsonl file must be an object with a "text"')
    return documents


def lines(model: str, results: list[Result]) -> list[str]:
    """Tables of the exact matches, and their means beside those of the choice."""
    out: list[str] = []
    for form, by_length in summary(results).items():
        lengths, depths, cells = table([r for r in results if r.form == form], "correct")
        out += ["", f"{model}, {form}: answers with the right number, in per cent"]
        out.append(f"{'depth':>8}" + "".join(f"{n:>8,}" for n in lengths))
        for depth, row in zip(depths, cells, strict=True):
            out.append(f"{depth:>8.0%}" + "".join(f"{100 * share:>8.0f}" for share in row))
        for name in ("correct", "picked"):
            out.append(f"{name:>8}" + "".join(f"{100 * by_length[str(n)][name]:>8.0f}" for n in lengths))
    return [*out, "picked: the right number is likelier than four wrong ones; 20 by chance"]


def _context(model: str) -> int:
    from fathom.checkpoint.reader import read_config
    from fathom.models.resolve import resolve

    return read_config(resolve(model)).max_position_embeddings


def _identity(model: str, dtype: str) -> str:
    from fathom.models.resolve import resolve

    return f"{fingerprint(resolve(model))}/{dtype}"
