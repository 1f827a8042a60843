"""/v1/responses, asked by OpenAI's own client."""

from __future__ import annotations

import json
import typing

import openai
import pytest
from api_texts import DEEP, FJORD, SEA, allowed, call, calls, prompt_of
from fake_service import FakeService
from openai.types.responses import response_create_params
from running import KEY, refused, running, wait_for

from fathom.engine.service import EngineBusy
from fathom.server.schemas.responses_request import REFUSED, ResponsesRequest
from fathom.text.chat_tokens import CALLS_BEGIN

PATH = "/v1/responses"
WEATHER = {"type": "function", "name": "weather", "description": "Of a place", "strict": False,
           "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}  # fmt: skip
OTHER = {"type": "function", "name": "other"}
LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}


def create(server, **asked):
    return server.openai.responses.create(**{"model": "minnow", "input": "Hi", **asked})


def post(server, **asked):
    return server.post(PATH, **{"input": "Hi", **asked})


def events(server, **asked):
    """Of a stream, with their numbers and the names around them checked."""
    text = server.post(PATH, stream=True, **{"input": "Hi", **asked}).text
    blocks = [block.split("\n") for block in text.strip().split("\n\n") if not block.startswith(":")]
    got = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [name for name, _ in blocks] == [f"event: {event['type']}" for event in got]
    assert [event["sequence_number"] for event in got] == list(range(len(got)))
    return got


def test_a_whole_response(server):
    asked = {"instructions": "Be a fish.", "metadata": {"a": "b"}, "user": "u", "max_output_tokens": 50}
    response = create(server, **asked)
    [item] = response.output
    assert response.output_text == "Hello there." and (item.type, item.role, item.status) == (
        "message", "assistant", "completed")  # fmt: skip
    assert response.status == "completed" and response.error is None and response.incomplete_details is None
    assert response.store is False and response.previous_response_id is None and response.background is False
    assert (response.instructions, response.metadata, response.user) == ("Be a fish.", {"a": "b"}, "u")
    assert (response.temperature, response.top_p, response.max_output_tokens) == (0.6, 0.95, 50)
    prompt, params, _ = server.fake.submitted[0]
    usage = response.usage
    assert (usage.input_tokens, usage.input_tokens_details.cached_tokens) == (len(prompt), 2)
    assert usage.output_tokens == len(server.fake.llm.tokenizer.encode("Hello there.")) + 1
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert prompt_of(server).startswith("Be a fish.") and params.max_tokens == 50


def test_sampling_reaches_the_engine(server):
    post(server, temperature=0.25, top_p=0.5, max_output_tokens=9)
    params = server.fake.submitted[0][1]
    assert (params.temperature, params.top_p, params.max_tokens, params.logprobs) == (0.25, 0.5, 9, None)


@pytest.mark.parametrize("store", [True, False, None])
def test_nothing_is_stored(server, store):
    response = create(server, store=store)
    assert response.store is False
    with pytest.raises(openai.NotFoundError):
        server.openai.responses.retrieve(response.id)


TEXT_EVENTS = ["response.output_item.added", "response.content_part.added", "response.output_text.delta",
               "response.output_text.done", "response.content_part.done", "response.output_item.done"]  # fmt: skip
THOUGHT_EVENTS = [name.replace("output_text", "reasoning_text") for name in TEXT_EVENTS]
CALL_EVENTS = ["response.output_item.added", "response.function_call_arguments.delta",
               "response.function_call_arguments.done", "response.output_item.done"]  # fmt: skip


@pytest.mark.parametrize(
    "script, asked, between",
    [
        ("Hello there.", {}, TEXT_EVENTS),
        ("", {}, []),
        (DEEP, {"reasoning": {"effort": "low"}}, [*THOUGHT_EVENTS, *TEXT_EVENTS]),
        (f"Look.{calls(SEA, FJORD)}", {"tools": [WEATHER]}, [*TEXT_EVENTS, *CALL_EVENTS, *CALL_EVENTS]),
        (f"{DEEP}{calls(SEA)}", {"tools": [WEATHER], "reasoning": {"effort": "high"}, **LOGPROBS},
         [*THOUGHT_EVENTS, *TEXT_EVENTS, *CALL_EVENTS]),
        (f"{CALLS_BEGIN}no call", {"tools": [WEATHER], **LOGPROBS}, TEXT_EVENTS),
    ],
)  # fmt: skip
def test_a_stream_has_its_events_in_order_and_adds_up(server, script, asked, between):
    server.fake.script = script
    got = events(server, **asked)
    names = [event["type"] for event in got]
    once = [name for i, name in enumerate(names) if not (name.endswith("delta") and names[i - 1] == name)]
    assert once == ["response.created", "response.in_progress", *between, "response.completed"]
    assert got[0]["response"]["status"] == "in_progress" and got[0]["response"]["output"] == []
    last, whole = got[-1]["response"], post(server, **asked).json()
    done = [event["item"] for event in got if event["type"] == "response.output_item.done"]
    assert last["output"] == done and [event["output_index"] for event in got if "output_index" in event][-1:] == (
        [len(done) - 1] if done else [])  # fmt: skip
    for item, other in zip(last["output"], whole["output"], strict=True):
        added = [e for e in got if e.get("item_id") == item["id"]]
        parts = "".join(event["delta"] for event in added if event["type"].endswith("delta"))
        assert parts == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])
        changing = ("id", "call_id")
        assert {k: v for k, v in item.items() if k not in changing} == {
            k: v for k, v in other.items() if k not in changing
        }
    assert last["usage"] == whole["usage"]


def test_the_official_stream_helper(server):
    server.fake.script = f"{DEEP}{calls(SEA)}"
    with server.openai.responses.stream(
        model="minnow", input="Hi", tools=[WEATHER], reasoning={"effort": "high"}
    ) as stream:
        kinds = {event.type for event in stream}
        thought, message, made = stream.get_final_response().output
    assert "response.reasoning_text.delta" in kinds and thought.content[0].text == "Hm, deep."
    assert message.content[0].text == "Deep." and (made.name, made.arguments) == ("weather", '{"at": "sea"}')


def test_logprobs_are_those_of_the_text(server):
    server.fake.script = f"{DEEP}{calls(SEA)}"
    asked = {"tools": [WEATHER], "reasoning": {"effort": "high"}, **LOGPROBS}
    part = create(server, **asked).output[1].content[0]
    assert "".join(entry.token for entry in part.logprobs).strip() == "Deep."
    assert all(len(entry.top_logprobs) == 2 and entry.bytes for entry in part.logprobs)
    server.fake.script = "One fish."
    entries = [entry for e in events(server, **LOGPROBS) if e["type"].endswith("text.delta") for entry in e["logprobs"]]
    assert "".join(entry["token"] for entry in entries) == "One fish."
    assert create(server).output[0].content[0].logprobs == []


def test_a_thought(server):
    server.fake.script = DEEP
    response = create(server, reasoning={"effort": "medium"})
    thought, message = response.output
    assert (thought.type, thought.content[0].text, thought.summary) == ("reasoning", "Hm, deep.", [])
    assert message.content[0].text == "Deep." and response.reasoning.effort == "medium"
    assert response.usage.output_tokens_details.reasoning_tokens > 3
    again = [{"role": "user", "content": "Hi"}, *response.output, {"role": "user", "content": "And?"}]
    assert create(server, input=again).output_text == server.fake.script
    for effort in ("none", "minimal"):
        create(server, reasoning={"effort": effort})
        assert server.fake.submitted[-1][2]["thinking_open"] is False


def test_calls_and_their_outputs(server):
    server.fake.script = f"Let me see.{calls(SEA, FJORD)}"
    response = create(server, tools=[WEATHER])
    message, *made = response.output
    assert message.content[0].text == "Let me see." and response.status == "completed"
    assert [(c.name, c.arguments) for c in made] == [("weather", '{"at": "sea"}'), ("weather", '{"at": "fjord"}')]
    assert len({c.call_id for c in made}) == 2 and response.tools[0].name == "weather"
    server.fake.script = "Wet."
    outputs = [{"type": "function_call_output", "call_id": made[1].call_id, "output": "cold"},
               {"type": "function_call_output", "call_id": made[0].call_id,
                "output": [{"type": "input_text", "text": "warm"}]}]  # fmt: skip
    items = [{"role": "user", "content": "Hi"}, *response.output, *outputs]
    assert create(server, input=items, tools=[WEATHER]).output_text == "Wet."
    prompt = prompt_of(server)
    assert prompt.index("Let me see.") < prompt.index('{"at": "sea"}') < prompt.index("warm") < prompt.index("cold")


def test_all_ways_to_write_a_message(server):
    items = [
        {"role": "developer", "content": "Be a fish."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "One"}], "status": "completed"},
        {"role": "assistant", "content": "Two"},
        {"role": "user", "content": "Three"},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "phase": "final_answer",
         "content": [{"type": "output_text", "text": "Four", "annotations": [], "logprobs": []}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "Five"}]},
        {"role": "user", "content": "Six"},
    ]  # fmt: skip
    create(server, input=items)
    plain = [{"role": role, "content": text} for role, text in (
        ("system", "Be a fish."), ("user", "One"), ("assistant", "Two"), ("user", "Three"), ("assistant", "Four"),
        ("assistant", "Five"), ("user", "Six"))]  # fmt: skip
    server.chat(messages=plain)
    assert server.fake.submitted[0][0] == server.fake.submitted[1][0]


@pytest.mark.parametrize(
    "asked, fits, does_not",
    [
        ({"tool_choice": "required"}, [calls(SEA), calls(SEA, FJORD)], ["Hm."]),
        ({"tool_choice": "required", "parallel_tool_calls": False}, [calls(SEA)], [calls(SEA, FJORD)]),
        ({"tool_choice": {"type": "function", "name": "other"}}, [calls(call("other", "{}"))], [calls(SEA), "Hm."]),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "other"}]}},
         [calls(call("other", "{}")), "Hm."], [calls(SEA)]),
        ({"tools": [{**WEATHER, "strict": True}]}, [calls(SEA), "Hm."], [calls(call("weather", "{1}"))]),
        ({"tools": [], "text": {"format": {"type": "json_schema", "name": "n", "schema": {"enum": [1]}}}},
         ["1"], ["2", "Hm."]),
        ({"tools": [], "text": {"format": {"type": "json_object"}, "verbosity": "medium"}}, ['{"a": 1}'], ["1"]),
    ],
)  # fmt: skip
def test_constraints(server, asked, fits, does_not):
    response = post(server, **{"tools": [WEATHER, OTHER], **asked}).json()
    if "tool_choice" in asked:
        assert response["tool_choice"] == asked["tool_choice"]
    assert [text for text in fits if not allowed(server, text)] == []
    assert [text for text in does_not if allowed(server, text)] == []


def test_an_answer_that_is_cut(server):
    response = create(server, max_output_tokens=2)
    assert response.status == "incomplete" and response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"
    last = events(server, max_output_tokens=2)[-1]
    assert last["type"] == "response.incomplete" and last["response"]["usage"]["output_tokens"] == 2


def test_every_field_of_openai_s_is_known():
    theirs = set(typing.get_type_hints(response_create_params.ResponseCreateParamsStreaming))
    assert theirs <= set(ResponsesRequest.model_fields) | set(REFUSED)


@pytest.mark.parametrize(
    "field, value",
    [
        *((name, {"id": "x"}) for name in REFUSED), ("background", True), ("previous_response_id", "resp_1"),
        ("include", ["reasoning.encrypted_content"]), ("include", ["file_search_call.results"]), ("input", []),
        ("input", None), ("instructions", 1), ("max_output_tokens", 0), ("metadata", {"a": 1}), ("model", None),
        ("parallel_tool_calls", 1), ("prompt_cache_retention", "24h"), ("reasoning", {"summary": "auto"}),
        ("reasoning", {"effort": "huge"}), ("reasoning", {"mode": "pro"}), ("reasoning", {"context": "all_turns"}),
        ("service_tier", "flex"), ("stream_options", {"include_obfuscation": False}), ("temperature", 3), ("top_p", 0),
        ("text", {"verbosity": "low"}), ("text", {"format": {"type": "xml"}}), ("text", {"format": {
            "type": "json_schema", "name": "n", "schema": {"not": {}}}}), ("tool_choice", "required"),
        ("text", {"format": {"type": "json_schema", "name": "n", "schema": {}, "description": "d"}}),
        ("tool_choice", {"type": "web_search_preview"}), ("tools", [{"type": "web_search"}]), ("tools", [OTHER, OTHER]),
        ("tools", [{**OTHER, "output_schema": {}}]), ("tools", [{**OTHER, "async": True}]), ("top_logprobs", 3),
        ("truncation", "auto"), ("messages", []), ("max_tokens", 3), ("n", 2),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(server, field, value):
    error = refused(post(server, **{field: value}), 400, post(server, **{field: value}).json()["error"]["param"])
    assert error["param"].startswith(field) and field in error["message"], error
    assert not server.fake.submitted


USER = {"role": "user", "content": "x"}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "x"}


@pytest.mark.parametrize(
    "items, param",
    [
        ([{"type": "item_reference", "id": "x"}], "input[0]"),
        ([{"id": "x"}], "input[0]"),
        ([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}], "input[0].content[0].type"),
        ([{"role": "tool", "content": "x"}], "input[0].role"),
        ([{**USER, "name": "Ann"}], "input[0].name"),
        ([USER, CALL], "input"),
        ([USER, CALL, USER], "input[2]"),
        ([USER, CALL, CALL], "input[2].call_id"),
        ([USER, OUTPUT], "input[1].call_id"),
        ([USER, CALL, OUTPUT, OUTPUT], "input[3].call_id"),
        ([USER, CALL, {**CALL, "call_id": "c2"}, OUTPUT, {**CALL, "call_id": "c3"}], "input[4]"),
        ([USER, {**CALL, "arguments": "[]"}, OUTPUT], "input[1].arguments"),
        ([USER, {**CALL, "arguments": "{"}, OUTPUT], "input[1].arguments"),
        ([USER, {"role": "assistant", "content": "I"}], "input[1]"),
        ([{"type": "reasoning", "summary": []}], "input[0]"),
        ([USER, {"type": "reasoning", "summary": [], "encrypted_content": "x"}, USER], "input[1].encrypted_content"),
    ],
)
def test_items_that_are_refused(server, items, param):
    refused(post(server, input=items), 400, param)


def test_errors_around_a_request(server):
    refused(post(server, model="whale"), 404, "model")
    refused(post(server, input="fish " * 10_000), 400, "input")
    server.fake.busy = EngineBusy("9 requests are waiting, the limit is 9", 2.2)
    with pytest.raises(openai.RateLimitError):
        create(server, stream=True)
    with running(FakeService(), api_keys=(KEY,)) as guarded:
        refused(guarded.http.post(PATH, json={}, headers={"authorization": "x"}), 401, None)


def test_failures(server):
    server.fake.fail_after = 2
    refused(post(server), 500, None)
    *_, last = create(server, stream=True)
    assert last.type == "response.failed" and last.response.status == "failed"
    assert last.response.error.code == "server_error" and "fish" not in last.response.error.message
    wait_for(lambda: not server.fake.running)


def test_a_client_that_leaves_aborts_its_request(server):
    server.fake.script, server.fake.pause = "fish " * 300, 0.01
    body = {"model": "minnow", "input": "Hi", "stream": True}
    with server.http.stream("POST", PATH, json=body) as response:
        next(response.iter_text())
    wait_for(lambda: not server.fake.running)
    with pytest.raises(Exception, match="timed out"):
        server.http.post(PATH, json={**body, "stream": False}, timeout=0.15)
    wait_for(lambda: not server.fake.running)
    assert len(server.fake.aborted) == len(server.fake.submitted) == 2
