"""The stream's joined pieces equal `parse_assistant` of the whole text, for any text and any cuts."""

import json

import pytest
from chat_helpers import CLOSED, both
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.text.chat import ChatTemplate
from fathom.text.chat_parse import CallBlock, parse_assistant
from fathom.text.chat_stream import AnswerStream, Piece
from fathom.text.chat_tokens import (
    CALL_BEGIN,
    CALL_END,
    CALLS_BEGIN,
    CALLS_END,
    END_THINK,
    EOS,
    SEP,
    THINK,
)

V3_CALL = f'{CALL_BEGIN}function{SEP}f\n```json\n{{"a": 1}}\n```{CALL_END}'
V31_CALL = f'{CALL_BEGIN}g{SEP}{{"b": "\\n"}}{CALL_END}'
TOKENS = [THINK, END_THINK, CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_END, SEP, EOS]
fragments = st.one_of(
    st.sampled_from(TOKENS),
    st.sampled_from([V3_CALL, V31_CALL, CALLS_BEGIN + V3_CALL + CALLS_END, CALLS_BEGIN + V31_CALL + "\n" + V31_CALL]),
    st.sampled_from(["\n", "\n\n", " ", "function", "f", "\n```json\n", "\n```", "{}", '{"x": [1]}', "[]", "words "]),
    st.builds(lambda token, n: token[:n], st.sampled_from(TOKENS), st.integers(1, 6)),
    st.builds(lambda token, n: token[-n:], st.sampled_from(TOKENS), st.integers(1, 6)),
)
# Random fragments rarely make whole answers: some texts have the shape of one, with random fragments in between.
shaped = st.builds(
    lambda parts: "".join(parts),
    st.tuples(
        st.sampled_from(["", THINK, THINK + "\n", "thought"]),
        st.one_of(st.just(""), fragments),
        st.sampled_from(["", END_THINK, "\n" + END_THINK, "\n" + END_THINK + "\n\n", END_THINK + "\n"]),
        st.one_of(st.just(""), fragments),
        st.sampled_from([CALLS_BEGIN, CALLS_BEGIN + "\n"]),
        st.lists(st.sampled_from([V3_CALL, V31_CALL, "\n"]), max_size=4).map("".join),
        st.one_of(st.just(""), st.just(""), fragments),
        st.sampled_from(["", CALLS_END, CLOSED, CLOSED + EOS, CALLS_END + "\n"]),
    ),
)
texts = st.one_of(st.lists(fragments, max_size=10).map("".join), shaped)


def cut(text, data):
    points = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12), label="cuts"))
    return [text[a:b] for a, b in zip([0, *points], [*points, len(text)], strict=True)]


def joined(pieces):
    """The message that a client builds from the pieces."""
    message = {"role": "assistant", "content": None}
    for piece in pieces:
        assert piece.text or piece.kind in ("call", "arguments")
        if piece.kind == "reasoning":
            message["reasoning_content"] = message.get("reasoning_content", "") + piece.text
        elif piece.kind == "content":
            message["content"] = (message["content"] or "") + piece.text
        elif piece.kind == "call":
            calls = message.setdefault("tool_calls", [])
            assert piece.call == len(calls)
            calls.append({"type": "function", "function": {"name": piece.text, "arguments": ""}})
        else:
            message["tool_calls"][piece.call]["function"]["arguments"] += piece.text
    if "tool_calls" not in message and message["content"] is None:
        message["content"] = ""
    return message


def run(parts, format, **options):
    stream = AnswerStream(format, **options)
    return joined([piece for part in parts for piece in stream.push(part)] + stream.finish())


@pytest.mark.parametrize("format", ["v3", "v3.1", "other"])
@pytest.mark.parametrize("thinking", [False, True])
@settings(max_examples=200)
@given(text=texts, data=st.data())
def test_joined_pieces_are_the_parsed_message(format, thinking, text, data):
    parts = cut(text, data)
    assert run(parts, format, thinking=thinking, tools=True) == parse_assistant(text, format, thinking)
    assert run(text, format, thinking=thinking, tools=True) == parse_assistant(text, format, thinking)  # by character


@both
@settings(max_examples=100)
@given(text=texts, thinking=st.booleans(), data=st.data())
def test_without_tools_calls_are_content(format, text, thinking, data):
    stand_in = "\ufdd0"
    expected = parse_assistant(text.replace(CALLS_BEGIN, stand_in), format, thinking)
    assert "tool_calls" not in expected
    for field in ("content", "reasoning_content"):
        if field in expected:
            expected[field] = expected[field].replace(stand_in, CALLS_BEGIN)
    assert run(cut(text, data), format, thinking=thinking, tools=False) == expected


@given(text=st.text("ab<", max_size=12), eos=st.sampled_from(["", "a", "aa", "aba", "<a"]), data=st.data())
def test_any_end_token(text, eos, data):
    assert run(cut(text, data), "v3", thinking=False, tools=True, eos=eos) == parse_assistant(text, "v3", False, eos)


def test_text_comes_out_at_once_except_what_may_be_a_token():
    stream = AnswerStream("v3", thinking=True, tools=True)
    assert stream.push("I ") == [Piece("reasoning", "I ")]
    assert stream.in_reasoning
    assert stream.push("see.\n") == [Piece("reasoning", "see.")]  # the newline may belong to </think>
    assert stream.push("</th") == []
    assert stream.push("ough") == [Piece("reasoning", "\n</though")]
    assert stream.push("</think>\n\nYe") == [Piece("content", "Ye")]
    assert not stream.in_reasoning
    assert stream.push("s <") == [Piece("content", "s ")]
    assert stream.push("b>") == [Piece("content", "<b>")]
    assert stream.push(EOS) == [] == stream.finish()


@both
def test_calls_come_at_the_end_and_a_broken_block_at_once(format):
    call = V3_CALL if format == "v3" else V31_CALL
    name, arguments = ("f", '{"a": 1}') if format == "v3" else ("g", '{"b": "\\n"}')
    stream = AnswerStream(format, thinking=False, tools=True)
    assert stream.push("So: " + CALLS_BEGIN) == [Piece("content", "So: ")]
    assert stream.push(call) == [] == stream.push(call + CALLS_END)
    assert stream.finish() == [Piece("call", name, 0), Piece("arguments", arguments, 0),
                               Piece("call", name, 1), Piece("arguments", arguments, 1)]  # fmt: skip
    for ending in ("words", call + "words", call + CALLS_END + "w", CALLS_END, call + CALL_END):
        stream = AnswerStream(format, thinking=False, tools=True)
        assert stream.push(CALLS_BEGIN + ending) == [Piece("content", CALLS_BEGIN + ending)]
        assert stream.push(" more" + CALLS_BEGIN) == [Piece("content", " more" + CALLS_BEGIN)]


@both
@settings(max_examples=100)
@given(text=texts, data=st.data())
def test_a_block_that_is_broken_stays_broken(format, text, data):
    """What the stream relies on when it gives a malformed block out as content before the end."""
    block = CallBlock(format)
    parts = cut(text, data)
    seen = ""
    for part in parts:
        block.push(part)
        seen += part
        if block.broken:
            break
    if block.broken:
        for rest in ("", *parts, CALLS_END, V3_CALL + CALLS_END, V31_CALL + CALLS_END):
            assert "tool_calls" not in parse_assistant(CALLS_BEGIN + seen + rest, format)


@pytest.mark.parametrize("format", ["v3", "v3.1"])
@settings(max_examples=40)
@given(data=st.data())
def test_sure_calls_are_those_of_the_whole_text_and_come_as_they_are_written(format, data):
    names = st.sampled_from(["f", "get_weather", "a-b"])
    values = st.dictionaries(st.text("ab`\n{}", max_size=4), st.integers() | st.text("x`\n", max_size=6), max_size=3)
    calls = data.draw(st.lists(st.tuples(names, values), min_size=1, max_size=3))
    template = ChatTemplate.builtin(format)
    messages = [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "Well.", "tool_calls": [
            {"type": "function", "function": {"name": n, "arguments": json.dumps(v)}} for n, v in calls]},
    ]  # fmt: skip
    whole = template.render(messages, add_generation_prompt=False)
    text = whole[whole.index("Well.") :]
    stream = AnswerStream(format, thinking=False, tools=True, sure=True)
    pieces, at, before_the_end = [], 0, 0
    while at < len(text):
        step = data.draw(st.integers(1, 12))
        pieces += stream.push(text[at : at + step])
        at += step
    before_the_end = sum(p.kind == "arguments" for p in pieces)
    pieces += stream.finish()
    assert before_the_end >= len(calls)
    for i, (name, value) in enumerate(calls):
        assert [p.text for p in pieces if p.kind == "call" and p.call == i] == [name]
        assert "".join(p.text for p in pieces if p.kind == "arguments" and p.call == i) == json.dumps(value)
    assert "".join(p.text for p in pieces if p.kind == "content") == "Well."
