"""Forced tool calls: whatever the grammar admits, the parser of answers reads as calls that fit their schemas."""

import json
import random

import jsonschema
import numpy as np
import pytest
from grammar_walks import load_minnow, load_v3, takes, walk
from json_schemas import INT, REFERENCES, STR, arr, obj

from fathom.engine.grammar import GrammarCompiler
from fathom.engine.tool_grammar import MAX_CALLS, auto_tool_grammar, tool_call_grammar
from fathom.runtime import UserError
from fathom.text.chat import ChatTemplate
from fathom.text.chat_parse import parse_assistant
from fathom.text.chat_tokens import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, END_THINK, EOS
from fathom.text.tokenizer import Tokenizer

formats = pytest.mark.parametrize("format", ["v3", "v3.1"])


def tool(name, parameters=None, **more):
    function = {"name": name, "description": "d", **more} | ({} if parameters is None else {"parameters": parameters})
    return {"type": "function", "function": function}


TOOLS = [
    tool("get_weather", obj({"city": STR, "days": {"type": "integer", "minimum": 1, "maximum": 7}}, ["city"])),
    tool("add", obj({"numbers": arr(INT, 1, 3)})),
    tool("now"),
    tool("any", {}),
    tool('tree "ä" \\n', REFERENCES["tree"]),
    tool("list", REFERENCES["linked list"]),
]
SCHEMAS = {t["function"]["name"]: t["function"].get("parameters", {"additionalProperties": False}) for t in TOOLS}


def load(kind):
    if kind == "v3":
        return load_v3()
    minnow = load_minnow()
    return minnow if kind == "minnow" else Tokenizer(minnow._plain, eos_ids=minnow.eos_ids)


@pytest.fixture(scope="module", params=["minnow", "v3", "without control tokens"])
def compiler(request):
    tokenizer = load(request.param)
    assert bool(tokenizer.control_tokens) == (request.param != "without control tokens")
    return GrammarCompiler(tokenizer, tokenizer.vocab_size, tokenizer.eos_ids)


def spoken(compiler, matcher, rng):
    """A random answer. (The grammars end by themselves, but not always soon.)"""
    return compiler.tokenizer.decode(walk(compiler, matcher, rng, wild=60, limit=1500), skip_special=False)


def check(text, format, names, before=None):
    """The calls of an answer, every one of them checked against its schema."""
    message = parse_assistant(text, format)
    assert message["content"] == before, text
    for call in message["tool_calls"]:
        assert call["function"]["name"] in names
        jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMAS[call["function"]["name"]])
    return message["tool_calls"]


@formats
@pytest.mark.parametrize("parallel", [False, True])
def test_walks_are_read_as_calls(compiler, format, parallel):
    grammar = tool_call_grammar(TOOLS, format, choice="required", parallel=parallel, tokenizer=compiler.tokenizer)
    counts, names = [], set()
    for seed in range(8):
        calls = check(spoken(compiler, compiler.matcher(grammar), random.Random(seed)), format, SCHEMAS)
        counts.append(len(calls))
        names |= {call["function"]["name"] for call in calls}
    assert len(names) > 1
    assert max(counts) > 1 if parallel else set(counts) == {1}


@formats
def test_a_named_function(compiler, format):
    for name in SCHEMAS:
        grammar = tool_call_grammar(TOOLS, format, choice=name, parallel=False, tokenizer=compiler.tokenizer)
        check(spoken(compiler, compiler.matcher(grammar), random.Random(name)), format, [name])


@formats
def test_what_the_template_writes_is_admitted(compiler, format):
    template = ChatTemplate.builtin(format)
    made = [("get_weather", '{"city": "Köln", "days": 3}'), ("now", "{}"), ("add", '{\n  "numbers": [\n    1\n  ]\n}')]

    def admitted(calls, **options):
        tool_calls = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in calls]
        user = {"role": "user", "content": "q"}
        prompt = template.render([user])
        answer = {"role": "assistant", "content": None, "tool_calls": tool_calls}
        text = template.render([user, answer], add_generation_prompt=False)[len(prompt) :].removesuffix(EOS)
        matcher = compiler.matcher(tool_call_grammar(TOOLS, format, tokenizer=compiler.tokenizer, **options))
        return takes(compiler, matcher, compiler.tokenizer.encode(text))[0]

    assert admitted(made, choice="required", parallel=True)
    assert admitted(made[:1], choice="required", parallel=False) and admitted(made[1:2], choice="now", parallel=False)
    assert admitted(made[1:2] * MAX_CALLS, choice="required", parallel=True)
    assert not admitted(made[1:2] * (MAX_CALLS + 1), choice="required", parallel=True)
    assert not admitted(made, choice="required", parallel=False)
    assert not admitted(made[:1], choice="add", parallel=True)
    assert not admitted([("get_weather", '{"city": "x", "days": 8}')], choice="required", parallel=True)
    assert not admitted([("now", '{"a": 1}')], choice="required", parallel=True)
    assert admitted([("any", '{"a": [1]}')], choice="required", parallel=True)
    assert not admitted([("other", "{}")], choice="required", parallel=True)


def test_control_tokens_are_matched_as_tokens(compiler):
    tokenizer = compiler.tokenizer
    matcher = compiler.matcher(
        tool_call_grammar(TOOLS, "v3.1", choice="required", parallel=True, tokenizer=tokenizer), after=END_THINK
    )
    for token in tokenizer.encode("hm" + CALLS_BEGIN + END_THINK):
        assert matcher.mask() is None
        matcher.advance(token)
    first = np.flatnonzero(matcher.mask().numpy()).tolist()
    if tokenizer.control_tokens:
        assert first == [tokenizer.id_of(CALLS_BEGIN)]
    else:
        assert all(CALLS_BEGIN.startswith(tokenizer.decode([i]).rstrip("\ufffd")) for i in first)


@formats
def test_auto_is_any_text_and_then_well_formed_calls(compiler, format):
    strict = [tool("get_weather", SCHEMAS["get_weather"], strict=True), tool("add", SCHEMAS["add"])]
    grammar = auto_tool_grammar(strict, format, parallel=True, tokenizer=compiler.tokenizer)

    def admitted(text):
        return takes(compiler, compiler.matcher(grammar), compiler.tokenizer.encode(text))[0]

    def call(name, arguments):
        if format == "v3.1":
            return f"{CALL_BEGIN}{name}<｜tool▁sep｜>{arguments}{CALL_END}"
        return f"{CALL_BEGIN}function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```{CALL_END}"

    weather = call("get_weather", '{"city": "x"}')
    assert admitted("") and admitted("Hello,\nworld. <b> 😀") and admitted("a < b" + CALLS_BEGIN + weather + CALLS_END)
    assert admitted(CALLS_BEGIN + call("add", '{"whatever": 1}') + CALLS_END)  # not strict: any object
    assert not admitted(CALLS_BEGIN + call("get_weather", '{"town": "x"}') + CALLS_END)
    assert not admitted(CALLS_BEGIN + call("other", "{}") + CALLS_END)
    assert not admitted("text" + CALLS_BEGIN + "more text")
    assert not admitted(CALLS_BEGIN + weather + CALLS_END + "more text")
    matcher = compiler.matcher(grammar)
    assert takes(compiler, matcher, compiler.tokenizer.encode("So "))[0] and not matcher.finished
    for token in compiler.tokenizer.encode(CALLS_BEGIN):
        matcher.advance(token)
    text = "So " + CALLS_BEGIN + spoken(compiler, matcher, random.Random(1))
    message = parse_assistant(text, format)
    assert message["content"] == "So " and message["tool_calls"] and matcher.finished


@pytest.mark.parametrize(
    ("tools", "options", "why"),
    [
        ([], {}, "there are no tools"),
        (TOOLS, {"choice": "nope"}, "'nope' is none of the tools; use one of get_weather, add, now"),
        (TOOLS, {"format": "other"}, "only v3 and v3.1"),
        ([tool("f", {"type": "array"})], {}, "tool 'f': the type of its parameters is 'array'"),
        ([tool("f", {"x-guidance": {}})], {}, "tool 'f': the JSON schema has the key 'x-guidance'"),
        ([tool("f", {"properties": {"a": {"multipleOf": 1e9}}})], {}, "tool 'f': the JSON schema asks for multiples"),
        ([tool("f", {"description": "x" * 70_000})], {}, "the limit is 65536"),
        ([{"type": "retrieval"}], {}, "tool 0 must be an object"),
    ],
)
def test_what_is_refused(tools, options, why):
    with pytest.raises(UserError, match=why):
        tool_call_grammar(tools, options.get("format", "v3"), choice=options.get("choice", "required"), parallel=True)


def test_a_function_may_be_called_required(compiler):
    tools = [tool("required"), tool("other")]
    grammar = tool_call_grammar(tools, "v3.1", choice="required", parallel=False, tokenizer=compiler.tokenizer)
    names = {spoken(compiler, compiler.matcher(grammar), random.Random(i)).count("other") for i in range(8)}
    assert names == {0, 1}
