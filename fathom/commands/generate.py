"""`fathom generate`: answer a file of prompts, one JSON object per line of output, in the order of the input.

Input: text, one prompt per line; or, if the name ends in .jsonl, one object per line:
    {"prompt": "..."} or {"messages": [...]}, with any sampling field beside it: {"prompt": "...", "temperature": 0}
An "id" is repeated in the output. Lines for OpenAI's Batch API ({"custom_id", "method", "url", "body"}) are read, too.
Output: {"index": 0, "request": "<hash>", "prompt_tokens": 9, "generated_tokens": 5, "outputs": [{"text": ...}]}
and, of a conversation that was answered once, "messages" with the answer at its end: dialogues that a model can be
trained on (`fathom train sft`, `distill`).

The whole input is checked, lengths included, before the first answer. `request` is a hash over prompt, sampling fields
and model. A run that was cut off goes on where it stopped: the lines already there must carry the hashes of this
input; a last line without its line break was cut in the middle and is made again. The seed of a request comes from
--seed and its index, so a resumed output equals an uninterrupted one but for the last bits of log-probabilities, which
depend on what a prompt is computed beside.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from fathom.commands.generate_files import Request, only_writer, read_done, read_requests
from fathom.engine.defaults import FIELDS, default_sampling
from fathom.engine.llm import LLM
from fathom.engine.outputs import RequestOutput
from fathom.models.resolve import resolve
from fathom.runtime import UserError, progress

EXAMPLES = """
  fathom generate minnow --input-file prompts.txt --output-file answers.jsonl --max-tokens 100
  fathom generate DIR --input-file chats.jsonl --output-file answers.jsonl --temperature 0 --logprobs 0
"""


@dataclass(frozen=True)
class Args:
    """Answer a file of prompts; an interrupted run goes on where it stopped."""

    model: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="MODEL")]]
    """A folder in Hugging Face layout, a hub id, or a name that `fathom models` lists."""
    input_file: Path
    """Text, a prompt per line; or .jsonl with prompt or messages, and sampling fields, per line."""
    output_file: Path
    """One JSON object per prompt, in the same order."""
    chat: bool = False
    """A prompt is a user's message for the chat template, not text to continue."""
    overwrite: bool = False
    """Begin anew, whatever the output file holds."""
    temperature: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """0 is greedy. Left out, this and the next four are what the model recommends (generation_config.json)."""
    top_p: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Draw from the likeliest tokens that hold this much probability."""
    top_k: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Draw from this many likeliest tokens; 0: from all."""
    min_p: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Drop tokens less likely than this times the likeliest."""
    max_tokens: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Longest answer; if the model recommends nothing: what the context holds."""
    stop: tuple[str, ...] = ()
    """End an answer before any of these texts."""
    n: int = 1
    """Samples per prompt."""
    logprobs: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Write log-probabilities: 0 of the chosen token, k also of the k likeliest."""
    repetition_penalty: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Above 1: tokens already seen become less likely. Left out: what the model recommends."""
    presence_penalty: float = 0.0
    """Taken off the logit of tokens already in the answer."""
    frequency_penalty: float = 0.0
    """The same, for each time the token occurred."""
    ignore_eos: bool = False
    """Go on after end tokens, until max-tokens."""
    seed: int = 0
    """Each prompt draws from its own seed, made from this one and its index."""
    dtype: str = "auto"
    """auto, bfloat16, float32 or float16."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""


def run(args: Args) -> int:
    """Read, check, see what is done, answer the rest."""
    given = {name: value for name in FIELDS.values() if (value := getattr(args, name)) is not None}
    base = default_sampling(resolve(args.model)).replace(
        **given, stop=args.stop, n=args.n, logprobs=args.logprobs, presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty, ignore_eos=args.ignore_eos, seed=args.seed,
    )  # fmt: skip
    requests = read_requests(args.input_file, base, args.model, chat=args.chat)
    if args.output_file.exists() and args.output_file.samefile(args.input_file):
        raise UserError(f"{args.output_file} is the input file too; choose another output file")
    done, keep = read_done(args.output_file, requests, overwrite=args.overwrite)
    llm = LLM(args.model, dtype=args.dtype, device=args.device, seed=args.seed)
    answer_all(llm, requests, args.output_file, done, keep)
    return 0


def answer_all(llm: LLM, requests: list[Request], output: Path, done: int, keep: int) -> None:
    """Check every prompt against the model, cut the output to its first `keep` bytes, append the missing answers."""
    for request in requests[done:]:
        try:
            llm.check(request.prompt, request.params)
        except UserError as error:
            raise UserError(f"input line {request.line}: {error}") from None
    if done:
        print(f"{output}: {done} of {len(requests)} answers are there already", file=sys.stderr)
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(output, "ab", buffering=0) as file,  # a full disk must not be met once more when it is closed
        only_writer(file, output),
        progress("generate", len(requests), unit="prompts") as bar,
    ):
        file.truncate(keep)
        bar.advance(done)
        left = requests[done:]
        answers = llm.each([request.prompt for request in left], [request.params for request in left])
        for index, (request, out) in enumerate(zip(left, answers, strict=True), start=done):
            line = memoryview(json.dumps(record(index, request, out), ensure_ascii=False).encode() + b"\n")
            while line:
                line = line[file.write(line) :]
            os.fsync(file.fileno())  # an answer that took seconds to make is worth a write
            bar.advance(1)


def record(index: int, request: Request, out: RequestOutput) -> dict[str, Any]:
    """One line of output. No times in it: the same input gives the same bytes."""
    outputs = []
    for sample in out.outputs:
        entry: dict[str, Any] = {"text": sample.text, "finish_reason": sample.finish_reason}
        entry["token_ids"] = sample.token_ids
        if sample.logprobs is not None:
            entry["logprobs"] = [{"logprob": p.logprob, "top": [list(pair) for pair in p.top]} for p in sample.logprobs]
        outputs.append(entry)
    counts = {"prompt_tokens": out.metrics.prompt_tokens, "generated_tokens": out.metrics.generated_tokens}
    whole: dict[str, Any] = {}
    if not isinstance(request.prompt, str) and len(out.outputs) == 1:
        whole["messages"] = [*request.prompt, {"role": "assistant", "content": out.outputs[0].text}]
    return {"index": index, **request.name, "request": request.key} | counts | {"outputs": outputs} | whole
