"""From a request to what the engine is given. This is where an API on top of the engine starts.

    How to add an API (say /v1/messages)
    1. check the request, and turn it into a ChatJob: OpenAI-shaped messages and tools, SamplingParams, a ToolChoice
    2. run = await start_chat(served, job)           errors come here, while a status can still be sent
    3. return EventStream(run, events) or await watched(request, run, work), both of sse.py; they close the run, which
       aborts what is still being generated
    4. in events or work: async for event in run: ...   one ChatEvent per token (generation.py); write your own answer;
       run.usage is complete at the end
    5. add the router to ROUTERS of app.py, and the shape of its errors to ERROR_SHAPES; keys, limits, ids and the log
       are there already

What a job asks is honoured here or refused: thinking that the template has no place for, tools in a format that nobody
can parse, calls that must fit their schema (tool_choice.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fathom.engine.llm import LLM
from fathom.engine.params import SamplingParams
from fathom.runtime import UserError
from fathom.server.errors import ApiError
from fathom.server.limits import CHARS_PER_TOKEN
from fathom.server.tool_choice import ToolChoice, checked_choice, constrained
from fathom.text.chat import ChatTemplate
from fathom.text.chat_stream import AnswerStream

Message = dict[str, Any]
_PROBE = "probe-of-name"


@dataclass(frozen=True)
class ChatJob:
    """A conversation to be answered, whatever API it came by."""

    messages: list[Message]
    params: SamplingParams
    tools: list[dict[str, Any]] = field(default_factory=list)
    choice: ToolChoice = field(default_factory=ToolChoice)
    thinking: bool | None = None
    """None: nobody said; then without a thought, unless the template always opens one."""
    priority: int = 0


@dataclass(frozen=True)
class Prepared:
    """What the engine is given, and what reads its answer."""

    prompt: list[int]
    params: SamplingParams
    thinking_open: bool
    new_stream: Callable[[], AnswerStream]


@dataclass(frozen=True)
class TemplateFacts:
    """What a chat template can do, found by rendering."""

    knows_thinking: bool
    always_thinks: bool
    uses_names: bool
    format: str

    @classmethod
    def of(cls, template: ChatTemplate) -> TemplateFacts:
        user = {"role": "user", "content": "u"}
        try:
            plain, thinking = template.render([user]), template.render([user], thinking=True)
            named = template.render([{**user, "name": _PROBE}])
        except UserError:  # it asks for more than a user's message; nothing can be said about it
            return cls(False, False, False, template.format)
        always = template.thought_is_open(plain)
        return cls(template.thought_is_open(thinking), always, _PROBE in named, template.format)


def prepare(llm: LLM, facts: TemplateFacts, job: ChatJob) -> Prepared:
    """Render, tokenize, and choose the constraint. CPU work: call it in a thread."""
    template = llm.template
    if template is None:
        raise ApiError(400, "this model has no chat template; use /v1/completions", param="messages")
    thinking = _thinking(facts, job.thinking)
    check_names(facts, job.messages)
    check_length(llm, repr(job.messages) + repr(job.tools), "messages")
    choice = checked_choice(job.choice, job.tools, facts.format)
    try:
        text = template.render(job.messages, tools=job.tools or None, thinking=thinking)
        prompt = template.encode(llm.tokenizer, job.messages, tools=job.tools or None, thinking=thinking)
    except UserError as error:
        raise ApiError(400, str(error), param="tools" if str(error).startswith("tool") else "messages") from None
    compile_grammar(llm, job.params)
    params = constrained(job.params, choice, job.tools, facts.format, llm.tokenizer)
    compile_grammar(llm, params, "tools")
    is_open = template.thought_is_open(text)
    parse = bool(job.tools) and choice.mode != "none"

    sure = params.grammar != job.params.grammar  # the constraint that tools added makes every call well formed

    def new_stream() -> AnswerStream:
        return AnswerStream(facts.format, thinking=is_open, tools=parse, sure=sure, eos=template.eos_token)

    return Prepared(prompt, params, is_open, new_stream)


_GRAMMAR_FIELDS = {"json_schema": "response_format", "json_object": "response_format", "regex": "regex", "lark": "lark"}


def compile_grammar(llm: LLM, params: SamplingParams, param: str | None = None) -> None:
    """Compile a constraint in this thread, the engine finds it compiled. A bad one is an error that names its field."""
    if params.grammar is None:
        return
    try:
        llm.engine.compiler.matcher(params.grammar)
    except UserError as error:
        field = param or _GRAMMAR_FIELDS[params.grammar.kind]
        raise ApiError(400, f"{field}: {error}", param=field) from None


def _thinking(facts: TemplateFacts, asked: bool | None) -> bool:
    if asked and not facts.knows_thinking:
        raise ApiError(400, "this model's chat template knows no thinking; leave it out", param="thinking")
    if asked is False and facts.always_thinks:
        raise ApiError(400, "this model's chat template always opens a thought; leave thinking out", param="thinking")
    return bool(asked)


def check_names(facts: TemplateFacts, messages: list[Message]) -> None:
    """A speaker's name that the template has no place for would be lost."""
    for index, message in enumerate(messages):
        if message.get("name") is not None and not facts.uses_names:
            why = "this model's chat format has no place for names; leave it out or write it into the content"
            raise ApiError(400, f"messages[{index}].name: {why}", param=f"messages[{index}].name")


def check_length(llm: LLM, text: str, param: str) -> None:
    """Refuse what is far beyond the context before any work is spent on it."""
    limit = CHARS_PER_TOKEN * llm.max_model_len
    if len(text) > limit:
        message = f"{param} has {len(text)} characters; the context of {llm.max_model_len} tokens holds far fewer"
        raise ApiError(400, f"{message} (limit {limit}); send less", param=param, code="context_length_exceeded")
