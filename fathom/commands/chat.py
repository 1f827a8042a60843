"""`fathom chat`: a conversation at a terminal, or one answer for a prompt.

terminal, no -p            a conversation (see /help)
-p PROMPT                  one answer; text on standard input follows the prompt after a blank line
no -p, text on stdin       one answer to that text
neither                    refused: there is nothing to answer
"""

from __future__ import annotations

import json
import re
import secrets
import sys
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro

from fathom.commands.chat_input import history_path, line_editing, paste_pending, read_message
from fathom.commands.chat_session import ChatSession
from fathom.engine.defaults import described
from fathom.engine.llm import LLM
from fathom.engine.outputs import Delta
from fathom.engine.params import SamplingParams
from fathom.models.default import choose
from fathom.runtime import UserError

EXAMPLES = """
  fathom chat                                    talk with smol, which is fetched at the first start
  fathom chat DIR --temperature 0 -p "2 + 2 = ?" one answer from another model
  git diff | fathom chat DIR -p "Summarise:" --json
"""


@dataclass(frozen=True)
class Args:
    """Talk with a model, or answer one prompt."""

    model: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="[MODEL]")]] = None
    """A folder in Hugging Face layout, a hub id, or a name that `fathom models` lists; default: smol."""
    prompt: Annotated[str | None, tyro.conf.arg(aliases=("-p",), metavar="PROMPT")] = None
    """Answer this and leave; standard input, if piped, follows it."""
    json: bool = False
    """Print the one answer as a JSON object."""
    system: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """System text."""
    temperature: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """0 is greedy; default: what the model recommends."""
    top_p: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Draw from the likeliest tokens that hold this much probability; default: what the model recommends."""
    max_tokens: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Longest answer; default: what the model recommends, else what the context holds."""
    seed: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Makes the session repeatable; default: a new one each time."""
    thinking: bool = False
    """Let the model think first (templates that know thinking)."""
    dtype: str = "auto"
    """auto, bfloat16, float32 or float16."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""


def run(args: Args) -> int:
    """Decide between a conversation and one answer, then load the model and go."""
    asked = {"temperature": args.temperature, "top_p": args.top_p, "max_tokens": args.max_tokens}
    given = {name: value for name, value in asked.items() if value is not None}
    SamplingParams.from_dict(given)  # refused before the weights are read
    seed = args.seed if args.seed is not None else secrets.randbits(32)
    SamplingParams(seed=seed)
    at_terminal = _is_terminal(sys.stdin) and _is_terminal(sys.stdout)
    conversation = args.prompt is None and at_terminal
    if conversation and args.json:
        raise UserError("--json is for one answer; give -p PROMPT or pipe a text in")
    prompt = None if conversation else one_prompt(args.prompt)
    llm = LLM(choose(args.model), dtype=args.dtype, device=args.device, seed=seed)
    if llm.template is not None and llm.template.note:
        print(f"fathom: {llm.template.note}", file=sys.stderr)
    params = llm.sampling.replace(**given)
    session = ChatSession(params, args.system, args.thinking, llm.name)
    if prompt is None:
        return converse(llm, session)
    return answer_once(llm, session, prompt, as_json=args.json, seed=seed)


def one_prompt(prompt: str | None) -> str:
    """-p and standard input as one text."""
    piped = "" if sys.stdin is None or _is_terminal(sys.stdin) else _read_stdin()
    parts = [part for part in (prompt, piped) if part and part.strip()]
    if not parts:
        raise UserError("the prompt is empty; give -p a text, or pipe one in")
    return "\n\n".join(parts)


def answer_once(llm: LLM, session: ChatSession, prompt: str, *, as_json: bool, seed: int) -> int:
    """One answer on standard output."""
    session.ask(prompt)
    message, last = stream_answer(llm, session, show=not as_json)
    assert last is not None and last.metrics is not None
    metrics = last.metrics
    if as_json:
        result: dict[str, Any] = {"model": llm.name, "text": message["content"]}
        if "reasoning_content" in message:
            result["reasoning"] = message["reasoning_content"]
        timings = asdict(metrics)
        counts = {key: timings.pop(key) for key in ("prompt_tokens", "generated_tokens")}
        result |= {"finish_reason": last.finish_reason, "seed": seed, **counts, "metrics": timings}
        print(json.dumps(result, ensure_ascii=False))
    return 0


def converse(llm: LLM, session: ChatSession) -> int:
    """The conversation at the terminal. Ctrl-C stops an answer or clears the line; twice in a row at the prompt, or
    Ctrl-D, leaves."""
    print(f"{llm.name}, context {llm.max_model_len} tokens, {described(session.params)}.")
    print("/help lists commands, Ctrl-C stops an answer, Ctrl-D ends.")
    with line_editing(history_path()) as remember:
        interrupted = False
        while True:
            try:
                text = read_message(input, pending=paste_pending)
            except EOFError:
                print()
                return 0
            except KeyboardInterrupt:
                if interrupted:
                    print()
                    return 0
                interrupted = True
                print("\n(Ctrl-C again or Ctrl-D leaves)")
                continue
            interrupted = False
            if not text.strip():
                continue
            remember(text)
            try:
                if text.startswith("/"):
                    reply = session.command(text)
                    if reply.exit:
                        return 0
                    print(reply.text)
                else:
                    _turn(llm, session, text.strip())
            except UserError as error:
                print(f"fathom: error: {error}")
            except KeyboardInterrupt:  # a second Ctrl-C, while the first was being dealt with
                print()


def _turn(llm: LLM, session: ChatSession, text: str) -> None:
    before = list(session.turns)
    session.ask(text)
    try:
        dropped = session.fit(lambda m: llm.count_tokens(m, thinking=session.thinking), llm.max_model_len)
        if dropped:
            print(f"(the context of {llm.max_model_len} tokens is full: the oldest {dropped} turns are forgotten)")
        stream_answer(llm, session, show=True, interruptible=True)
    finally:
        if session.turns[-1]["role"] == "user":  # no answer came: refused, or stopped before its first word
            session.turns[:] = before  # what made room for it is back too


def stream_answer(
    llm: LLM, session: ChatSession, *, show: bool, interruptible: bool = False
) -> tuple[dict[str, Any], Delta | None]:
    """Answer the session's last question, showing the text as it comes. `interruptible`: Ctrl-C keeps what is there."""
    pieces: list[str] = []
    last: Delta | None = None
    in_terminal = _is_terminal(sys.stdout)
    try:
        for last in llm.stream(session.messages(), session.params, thinking=session.thinking):
            pieces.append(last.text)
            if show and last.text:
                print(printable(last.text) if in_terminal else last.text, end="", flush=True)
    except KeyboardInterrupt:
        if not interruptible:
            raise
        print(" (stopped)", end="")
    if show:
        print()
    text = "".join(pieces)
    message = llm.parse_answer(session.messages(), text, thinking=session.thinking)
    if "tool_calls" in message:  # there are no tools here: it is only text that looks like a call
        message = {"role": "assistant", "content": text}
    if text or (last is not None and last.finish_reason is not None):
        session.answered(message, last.metrics if last else None)
    return message, last


def printable(text: str) -> str:
    """Model output without control characters: it must not move the cursor or retitle the terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)


def _is_terminal(stream: Any) -> bool:
    return stream is not None and not stream.closed and bool(stream.isatty())


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8").rstrip("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 text (byte {error.start}); convert it first") from None
