"""Do other programs compute the same model from the same folder? Greedy answers, token by token.

    python benchmarks/agreement.py MODEL [--rivals llama,vllm] [--original FILE.gguf] [--tokens 40]

MODEL is loaded by Fathom, transformers and, with --rivals, by llama.cpp and vLLM (environments of their own, see
rivals/environments.py). All read one BF16 copy of it, made by `fathom convert`, and compute in FP32; Fathom also reads
it as it is stored. With --original the prompts go to llama.cpp with the file that MODEL was upcycled from, too: there
the weights differ by what the conversion costs, and the figures say how far the answers go together.

Each prompt is a chat of one message in the model's own template. A row: how many of the answers are the same to the
last token, and how many tokens in all come before the first difference. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "rivals"))
from contender import Contender, Unable
from environments import RIVALS, NotInstalled, python_of

from fathom.checkpoint.convert import convert
from fathom.checkpoint.plan import Options
from fathom.checkpoint.reader import open_checkpoint
from fathom.models.resolve import resolve
from fathom.text.chat import ChatTemplate
from fathom.text.tokenizer import Tokenizer

START_SECONDS, ANSWER_SECONDS = 600, 600
PROMPTS = (
    "What is the capital of France?", "Write a short story about a fox.", "Explain gravity in simple words.",
    "List five fruits.", "Who wrote Romeo and Juliet?", "What is 12 + 30?", "Give me a recipe for pancakes.",
    "Write a Python function that adds two numbers.", "Why is the sky blue?", "Name three planets.",
    "Translate 'good morning' into French.", "What is photosynthesis?", "Write a poem about the sea.",
    "How do I learn to swim?", "What is the largest ocean?", "Tell me about Albert Einstein.", "What is a noun?",
    "Give me two tips for a job interview.", "What do bees make?", "Summarise the story of Cinderella.",
)  # fmt: skip
ORIGINAL = "llama.cpp, the original file"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder or a named model")
    parser.add_argument("--rivals", default="", help="any of llama, vllm; commas between")
    parser.add_argument("--original", type=Path, help="the GGUF file that the model was upcycled from")
    parser.add_argument("--prompts", type=int, default=8, help=f"how many, at most {len(PROMPTS)}")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="print the answers, too")
    parser.add_argument(
        "--envs", type=Path, default=Path.home() / ".cache/fathom/bench", help="folder of their environments"
    )
    return parser.parse_args()


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def answers_of(key: str, python: str | Path, script: str, setting: dict[str, Any], variant: int,
               prompts: list[list[int]], new: int, logs: Path) -> tuple[str, list[list[int]]]:  # fmt: skip
    """What a contender says, one prompt at a time, and its name."""
    contender = Contender.start(key, python, script, setting, logs, START_SECONDS)
    try:
        chosen, found = contender.variants[variant], []
        for prompt in prompts:
            got = contender.ask(ANSWER_SECONDS, do="decode", variant=chosen, prompts=[prompt], new=new)
            found.append(got["answers"][0])
        return f"{contender.name}, {chosen}", found
    finally:
        contender.stop()


def together(one: list[int], other: list[int]) -> int:
    """Tokens before the first difference."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))


def compare(args: argparse.Namespace, folder: Path, work: Path) -> dict[str, tuple[str, list[list[int]]]]:
    """Row -> (name, answers). A contender that cannot run is said and left out."""
    tokenizer, template = Tokenizer.from_pretrained(folder), ChatTemplate.from_pretrained(folder)
    prompts = [template.encode(tokenizer, [{"role": "user", "content": text}]) for text in PROMPTS[: args.prompts]]
    bf16 = work / "bf16"
    with open_checkpoint(folder) as checkpoint:
        stored = checkpoint.is_fp8
    convert(folder, bf16, Options(to="bf16"))
    setting: dict[str, Any] = {
        "model": str(bf16), "stored": str(folder), "threads": args.threads, "dtypes": ["float32"], "gguf": str(work),
        "compiled": False, "speculative": False,
    }  # fmt: skip
    runs: list[tuple[str, str | Path, str, int]] = [("fathom", sys.executable, "fathom_runner.py", 1)]
    if stored:
        runs.append(("fathom, as stored", sys.executable, "fathom_runner.py", 0))
    runs.append(("transformers", sys.executable, "transformers_runner.py", 0))
    found: dict[str, tuple[str, list[list[int]]]] = {}
    for name in [r for r in args.rivals.split(",") if r]:
        try:
            runs.append((name, python_of(name, args.envs, say), RIVALS[name].script, 0))
        except NotInstalled as error:
            say(f"{name}: {error}")
    if args.original:
        runs.append((ORIGINAL, python_of("llama", args.envs, say), "llama_cpp_runner.py", 0))
    for key, python, script, variant in runs:
        say(key)
        own = {**setting, "file": str(args.original)} if key == ORIGINAL else setting
        try:
            found[key] = answers_of(key, python, script, own, variant, prompts, args.tokens, work)
        except Unable as error:
            say(f"{key}: {error}")
    if args.show:
        for number, text in enumerate(PROMPTS[: args.prompts]):
            print(f"\n{text}")
            for key, (_, answers) in found.items():
                print(f"  {key}: {tokenizer.decode(answers[number])!r}")
    return found


def main() -> None:
    args = options()
    with tempfile.TemporaryDirectory() as work:
        found = compare(args, resolve(args.model), Path(work))
    _, mine = found.pop("fathom")
    whole, total = len(mine), len(mine) * args.tokens
    rows = {}
    print(f"\n{whole} answers of {args.tokens} greedy tokens, against Fathom on the BF16 copy in FP32")
    for key, (name, answers) in found.items():
        lengths = [together(a, b) for a, b in zip(mine, answers, strict=True)]
        same, before = sum(n == args.tokens for n in lengths), sum(lengths)
        rows[key] = {"name": name, "same": same, "tokens_before_difference": before}
        print(f"{name:<60} {same:>3} of {whole} the same; {before} of {total} tokens before a difference")
    print(json.dumps({"model": args.model, "prompts": whole, "tokens": args.tokens, "rows": rows}))


if __name__ == "__main__":
    main()
