"""No field of a chat request is ignored: each is honoured (test_chat.py) or refused with a 400 that names it."""

from __future__ import annotations

import typing

import pytest
from openai.types.chat import completion_create_params as openai_params
from running import refused

from fathom.server.limits import MAX_JSON_DEPTH, MAX_MESSAGES, MAX_N, MAX_SCHEMA_CHARS, MAX_STOPS, MAX_TOOLS
from fathom.server.schemas.chat import REFUSED, ChatRequest

USER = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def test_every_field_of_openai_s_is_known():
    theirs = set(typing.get_type_hints(openai_params.CompletionCreateParamsStreaming))
    assert theirs == (set(ChatRequest.model_fields) | set(REFUSED)) & theirs


@pytest.mark.parametrize(
    "field, value",
    [
        ("audio", {"voice": "alloy", "format": "wav"}), ("functions", [{"name": "f"}]), ("function_call", "auto"),
        ("moderation", {"model": "m"}), ("prediction", {"type": "content", "content": "x"}),
        ("prompt_cache_options", {"ttl": "30m"}), ("web_search_options", {}), ("modalities", ["text", "audio"]),
        ("service_tier", "flex"), ("store", True), ("verbosity", "high"), ("prompt_cache_retention", "24h"),
        ("temperature", -0.1), ("temperature", 2.1), ("temperature", "1"), ("top_p", 0), ("n", 0), ("n", MAX_N + 1),
        ("n", True), ("stop", [""]), ("stop", ["x"] * (MAX_STOPS + 1)), ("seed", -1), ("presence_penalty", 3),
        ("frequency_penalty", -3), ("logit_bias", {"a": 1}), ("max_tokens", 0), ("max_completion_tokens", 1.5),
        ("top_logprobs", 3), ("logprobs", 1), ("response_format", {"type": "xml"}), ("reasoning_effort", "huge"),
        ("tool_choice", "maybe"), ("tool_choice", "required"), ("stream_options", {"include_usage": True}),
        ("top_k", -1), ("min_p", 2), ("repetition_penalty", 0), ("priority", 10**9), ("regex", "(?=a)"),
        ("regex", "x" * (MAX_SCHEMA_CHARS + 1)), ("lark", "nothing"), ("metadata", {"a": 1}), ("messages", []),
        ("messages", USER * (MAX_MESSAGES + 1)), ("tools", [TOOL] * (MAX_TOOLS + 1)), ("tools", [TOOL, TOOL]),
        ("model", None),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(server, field, value):
    response = server.chat(**{field: value})
    error = response.json()["error"]
    assert response.status_code == 400 and error["type"] == "invalid_request_error", error
    assert error["param"].startswith(field) and field in error["message"].split(":")[0], error
    assert not server.fake.submitted


@pytest.mark.parametrize(
    "messages, param",
    [
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages[0].content[0].type",
        ),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0].type"),
        ([*USER, {"role": "function", "name": "f", "content": "x"}], "messages[1]"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": "x", "name": "Ann"}], "messages[0].name"),
        ([{"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}], "messages[0].function_call"),
        ([{"role": "assistant", "content": None}], "messages"),
        ([{"role": "tool", "content": "x", "tool_call_id": "1"}], "messages"),
    ],
)
def test_messages_that_are_refused(server, messages, param):
    refused(server.chat(messages=messages), 400, param)


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "tool_choice"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
         "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "description": "d"}}},
         "response_format.json_schema.description"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}},
         "response_format"),
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "response_format"),
        ({"regex": "a", "lark": "start: \"a\""}, "lark"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"thinking": True, "reasoning_effort": "none"}, "thinking"),
        ({"chat_template_kwargs": {"style": 1}}, "chat_template_kwargs.style"),
        ({"n": 2, "temperature": 0}, "n"),
        ({"tools": [TOOL], "regex": "a"}, "regex"),
        ({"tools": [TOOL], "tool_choice": "required", "lark": 'start: "a"'}, "lark"),
    ],
)  # fmt: skip
def test_nested_fields_and_contradictions(server, fields, param):
    refused(server.chat(**fields), 400, param)
    assert not server.fake.submitted


def test_unknown_fields_are_all_named(server):
    error = refused(
        server.chat(temprature=1, frobnicate=2), 400, "temprature", "frobnicate", "did you mean temperature"
    )
    assert error["code"] == "unknown_field"
    refused(server.chat(messages=[{"role": "user", "content": "x", "mood": "sad"}]), 400, "messages[0].mood")


def test_null_is_left_out(server):
    nothing = {name: None for name in {*ChatRequest.model_fields, *REFUSED} - {"model", "messages"}}
    assert server.chat(**nothing).status_code == 200
    left_out, given = server.fake.submitted[0][1], None
    server.chat()
    given = server.fake.submitted[1][1]
    assert left_out == given


def test_a_message_of_ours_can_be_sent_back(server):
    message = server.openai.chat.completions.create(model="minnow", messages=USER).choices[0].message
    again = server.openai.chat.completions.create(model="minnow", messages=[*USER, message.model_dump(), *USER])
    assert again.choices[0].message.content == "Hello there."


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(server):
    limit = server.fake.llm.max_model_len
    error = refused(server.chat("fish " * (limit + 1)), 400, "messages", str(limit))
    assert error["code"] == "context_length_exceeded"
    refused(server.chat("x" * 200_000), 400, "messages", str(limit))


@pytest.mark.parametrize(
    "body, status, word",
    [
        (b"", 400, "empty"), (b"{", 400, "JSON"), (b"[]", 400, "object"), (b'"x"', 400, "object"),
        (b'{"model": NaN}', 400, "NaN"), (b'{"model": "\xff"}', 400, "UTF-8"),
        (b'{"model": "\\ud800"}', 400, "surrogate"), (b"[" * 100_000, 400, str(MAX_JSON_DEPTH)),
        (b'{"a":' * (MAX_JSON_DEPTH + 1) + b"1" + b"}" * (MAX_JSON_DEPTH + 1), 400, str(MAX_JSON_DEPTH)),
        (b"1" * 5000, 400, "JSON"),
    ],
)  # fmt: skip
def test_broken_bodies(server, body, status, word):
    headers = {"content-type": "application/json"}
    response = server.http.post("/v1/chat/completions", content=body, headers=headers)
    refused(response, status, None, word)


def test_brackets_in_texts_do_not_count_as_nesting(server):
    assert server.chat('[{"' * 100 + "\\" * 3).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_only_json_is_taken(server, kind):
    response = server.http.post("/v1/chat/completions", content=b"{}", headers={"content-type": kind})
    refused(response, 415, None, "application/json")


def test_another_model_is_a_404(server):
    refused(server.chat(model="gpt-6"), 404, "model", "gpt-6", "minnow")
