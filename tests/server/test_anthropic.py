"""/v1/messages, asked by Anthropic's own client."""

from __future__ import annotations

import json

import anthropic
import pytest
from anthropic_client import PATH, USER, create, post
from api_texts import DEEP, FJORD, SEA, allowed, call, calls, prompt_of
from running import KEY, wait_for

from fathom.server.anthropic_blocks import SIGNATURE
from fathom.text.chat_tokens import CALLS_BEGIN, END_THINK

WEATHER = {"name": "weather", "description": "Of a place", "input_schema": {
    "type": "object", "properties": {"at": {"type": "string"}}}}  # fmt: skip
OTHER = {"name": "other", "input_schema": {"type": "object"}}
THINK = {"type": "enabled", "budget_tokens": 50}


@pytest.fixture
def client(server):
    with anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0) as client:
        yield client


def events(server, **asked):
    """(name, data) of a stream."""
    blocks = post(server, stream=True, **asked).text.strip().split("\n\n")
    pairs = [block.split("\n") for block in blocks]
    assert all(name.startswith("event: ") and data.startswith("data: ") for name, data in pairs)
    named = [(name[7:], json.loads(data[6:])) for name, data in pairs]
    assert all(name == data["type"] for name, data in named)
    return [(name, data) for name, data in named if name != "ping"]


def test_a_whole_answer(server, client):
    message = create(client, system="Be a fish.", metadata={"user_id": "u"}, service_tier="standard_only")
    assert [(b.type, b.text) for b in message.content] == [("text", "Hello there.")]
    assert (message.stop_reason, message.stop_sequence, message.model) == ("end_turn", None, "minnow")
    usage, (prompt, params, _) = message.usage, server.fake.submitted[0]
    assert usage.input_tokens + usage.cache_read_input_tokens == len(prompt) and usage.cache_read_input_tokens == 2
    assert usage.output_tokens == len(server.fake.llm.tokenizer.encode("Hello there.")) + 1
    assert prompt_of(server).startswith("Be a fish.")
    assert (params.temperature, params.top_p, params.max_tokens) == (0.6, 0.95, 100)


def test_sampling_reaches_the_engine(server):
    post(server, temperature=0.25, top_p=0.5, top_k=7, max_tokens=9, stop_sequences=["x"])
    params = server.fake.submitted[0][1]
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens, params.stop) == (0.25, 0.5, 7, 9, ("x",))


def test_the_events_of_a_stream(server):
    got = events(server)
    text = "".join(d["delta"]["text"] for n, d in got if n == "content_block_delta")
    names = [name for name, _ in got]
    middle = names[2:-3]
    assert names[:2] == ["message_start", "content_block_start"] and set(middle) == {"content_block_delta"}
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"] and text == "Hello there."
    start, first, (_, delta) = got[0][1]["message"], got[1][1], got[-2]
    assert start["content"] == [] and start["stop_reason"] is None and start["usage"]["output_tokens"] == 0
    assert first == {"type": "content_block_start", "index": 0,
                     "content_block": {"type": "text", "citations": None, "text": ""}}  # fmt: skip
    assert delta["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    whole = post(server).json()["usage"]
    assert delta["usage"] == {k: v for k, v in whole.items() if k != "service_tier"}


@pytest.mark.parametrize(
    "script, asked",
    [
        ("Hello there.", {}),
        ("", {}),
        (DEEP, {"thinking": THINK}),
        (f"{DEEP} Look.{calls(SEA, FJORD)}", {"thinking": {"type": "adaptive"}, "tools": [WEATHER]}),
        (f"{CALLS_BEGIN}not a call", {"tools": [WEATHER]}),
        (calls(call("weather", '{"at": NaN, "n": 1e999, "s": "\\ud83d"}')), {"tools": [WEATHER]}),
    ],
)
def test_a_stream_adds_up_to_the_whole_answer(server, client, script, asked):
    server.fake.script = script
    whole = create(client, **asked)
    with client.messages.stream(model="minnow", max_tokens=100, messages=USER, **asked) as stream:
        streamed = stream.get_final_message()
    plain = [[b.to_dict() for b in m.content] for m in (whole, streamed)]
    for block in [*plain[0], *plain[1]]:
        block.pop("id", None)
        block.pop("parsed_output", None)
    assert plain[0] == plain[1]
    assert (whole.stop_reason, whole.usage.output_tokens) == (streamed.stop_reason, streamed.usage.output_tokens)


def test_a_thought_is_a_block_of_its_own(server, client):
    server.fake.script = DEEP
    message = create(client, thinking=THINK)
    thought, text = message.content
    assert (thought.thinking, thought.signature, text.text) == ("Hm, deep.", SIGNATURE, "Deep.")
    assert message.usage.output_tokens_details.thinking_tokens > 3
    kinds = [(d["index"], d["delta"]["type"]) for n, d in events(server, thinking=THINK) if n == "content_block_delta"]
    assert list(dict.fromkeys(kinds)) == [(0, "thinking_delta"), (0, "signature_delta"), (1, "text_delta")]
    assert kinds.count((0, "signature_delta")) == 1
    again = [*USER, {"role": "assistant", "content": message.content}, {"role": "user", "content": "And?"}]
    assert create(client, messages=again, thinking=THINK).content


@pytest.mark.parametrize("thinking, is_open", [(None, False), ({"type": "disabled"}, False), (THINK, True),
                                               ({"type": "adaptive", "display": "summarized"}, True)])  # fmt: skip
def test_thinking_opens_a_thought(server, thinking, is_open):
    assert post(server, **({} if thinking is None else {"thinking": thinking})).status_code == 200
    assert server.fake.submitted[0][2]["thinking_open"] is is_open


@pytest.mark.parametrize("stop_sequences", [None, ["fish fisher"]])
def test_a_thought_ends_at_its_budget(server, client, stop_sequences):
    server.fake.script = lambda prompt: "Deep." if prompt.rstrip().endswith(END_THINK) else "fish " * 80
    asked = {"thinking": {"type": "enabled", "budget_tokens": 10}, "stop_sequences": stop_sequences or []}
    message = create(client, **asked)
    thought, text = message.content
    (prompt, first, _), (longer, second, more) = server.fake.submitted
    generated = longer[len(prompt) : len(prompt) + 10]
    assert longer[: len(prompt)] == prompt and thought.thinking == server.fake.llm.tokenizer.decode(generated)
    assert text.text == "Deep." and message.stop_reason == "end_turn"
    assert second.max_tokens == first.max_tokens - 10 and more["thinking_open"] is False
    assert message.usage.output_tokens == 10 + len(server.fake.llm.tokenizer.encode("Deep.")) + 1
    assert message.usage.output_tokens_details.thinking_tokens == 10
    assert message.usage.input_tokens == len(prompt) and message.usage.cache_read_input_tokens == 0
    assert not server.fake.running and len(server.fake.aborted) == 1
    with client.messages.stream(model="minnow", max_tokens=100, messages=USER, **asked) as stream:
        assert stream.get_final_message().content[0].to_dict() == thought.to_dict()


def test_a_short_thought_does_not_feel_its_budget(server, client):
    server.fake.script = DEEP
    create(client, thinking={"type": "enabled", "budget_tokens": 99})
    assert len(server.fake.submitted) == 1 and not server.fake.aborted


def test_calls(server, client):
    server.fake.script = f"Let me see.{calls(SEA, FJORD)}"
    message = create(client, tools=[WEATHER])
    text, *uses = message.content
    assert message.stop_reason == "tool_use" and text.text == "Let me see."
    assert [(u.name, u.input) for u in uses] == [("weather", {"at": "sea"}), ("weather", {"at": "fjord"})]
    assert len({u.id for u in uses}) == 2 and all(u.id.startswith("toolu_") for u in uses)
    got = [d for n, d in events(server, tools=[WEATHER]) if n.startswith("content_block") and d["index"] == 1]
    assert got[0]["content_block"]["input"] == {} and json.loads(got[1]["delta"]["partial_json"]) == {"at": "sea"}
    server.fake.script = "Wet."
    results = [{"type": "tool_result", "tool_use_id": uses[1].id, "content": "cold", "is_error": True},
               {"type": "tool_result", "tool_use_id": uses[0].id, "content": [{"type": "text", "text": "warm"}]},
               {"type": "text", "text": "So?"}]  # fmt: skip
    turns = [*USER, message.to_param(), {"role": "user", "content": results}]
    assert create(client, tools=[WEATHER], messages=turns).content[0].text == "Wet."
    prompt = prompt_of(server)
    assert prompt.index('{"at": "sea"}') < prompt.index("warm") < prompt.index("Error: cold") < prompt.index("So?")


@pytest.mark.parametrize(
    "asked, fits, does_not",
    [
        ({"tool_choice": {"type": "any"}}, [calls(SEA), calls(SEA, FJORD)], ["Hm."]),
        ({"tool_choice": {"type": "any", "disable_parallel_tool_use": True}}, [calls(SEA)], [calls(SEA, FJORD)]),
        ({"tool_choice": {"type": "tool", "name": "other"}}, [calls(call("other", "{}"))], [calls(SEA), "Hm."]),
        ({"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}, [calls(SEA), "Hm."],
         [calls(SEA, FJORD)]),
        ({"tools": [{**WEATHER, "strict": True}]}, [calls(SEA), "Hm."], [calls(call("weather", "{1}"))]),
        ({"tools": [], "output_config": {"format": {"type": "json_schema", "schema": {"enum": [1, "a"]}}}},
         ["1", '"a"'], ["2", "Hm."]),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"enum": [1]}}}}, ["1", calls(SEA)], ["Hm."]),
    ],
)  # fmt: skip
def test_constraints(server, client, asked, fits, does_not):
    create(client, **{"tools": [WEATHER, OTHER], **asked})
    assert [text for text in fits if not allowed(server, text)] == []
    assert [text for text in does_not if allowed(server, text)] == []


def test_a_call_that_is_cut(server, client):
    """max_tokens inside its arguments: there is an answer, which says why it ended."""
    server.fake.script = calls(call("weather", '{"at": "' + "sea " * 50 + '"}'))
    asked = {"tools": [WEATHER], "tool_choice": {"type": "any"}, "max_tokens": 40}
    message = create(client, **asked)
    assert message.stop_reason == "max_tokens"
    assert [(b.type, b.input) for b in message.content] == [("tool_use", {})]
    deltas = [e["delta"] for name, e in events(server, **asked) if name == "content_block_delta"]
    assert "".join(d["partial_json"] for d in deltas).startswith('{"at": "sea sea')


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses", "/v1/chat/completions"])
def test_tools_are_json(server, path):
    schema = {"type": "object", "maximum": float("inf")}
    function = {"name": "f", "parameters": schema}
    tool = {"/v1/messages": {"name": "f", "input_schema": schema}, "/v1/responses": {"type": "function", **function}}
    body = {"model": "minnow", "tools": [tool.get(path, {"type": "function", "function": function})]}
    body |= {"input": "x"} if path == "/v1/responses" else {"messages": USER, "max_tokens": 9}
    text = json.dumps(body).replace("Infinity", "1e999")
    headers = {"content-type": "application/json"}
    response = server.http.post(path, content=text.encode(), headers=headers)
    assert response.status_code == 400 and "too large for JSON" in response.text


def test_tool_choice_none(server):
    server.fake.script = calls(SEA)
    message = post(server, tools=[WEATHER], tool_choice={"type": "none"}).json()
    assert [b["type"] for b in message["content"]] == ["text"] and server.fake.submitted[0][1].logit_bias


def test_why_an_answer_ended(server, client):
    server.fake.script = "one two three four five"
    message = create(client, stop_sequences=["nine", " three"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", " three")
    assert message.content[0].text == "one two"
    assert create(client, max_tokens=2).stop_reason == "max_tokens"
    limit = server.fake.llm.max_model_len
    server.fake.script = "fish " * (limit + 1)
    assert create(client, max_tokens=2 * limit).stop_reason == "model_context_window_exceeded"
    assert events(server, stop_sequences=[" three"], max_tokens=2 * limit)[-2][1]["delta"]["stop_reason"].startswith(
        "model"
    )


def test_turns_of_one_role_are_one(server):
    split = [{"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]}]
    joined = [{"role": "user", "content": "a\nb"}]
    for turns in (split, joined):
        assert post(server, messages=turns).status_code == 200
    assert server.fake.submitted[0][0] == server.fake.submitted[1][0]


def test_what_marks_the_cache_changes_nothing(server):
    mark = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    text = {"type": "text", "text": "Hi"}
    plain = {"messages": [{"role": "user", "content": [text]}], "system": [text], "tools": [WEATHER]}
    marked = {"messages": [{"role": "user", "content": [{**text, **mark, "citations": None}]}],
              "system": [{**text, **mark}], "tools": [{**WEATHER, **mark, "type": "custom"}], **mark}  # fmt: skip
    for asked in (plain, marked):
        assert post(server, **asked).status_code == 200
    assert server.fake.submitted[0][0] == server.fake.submitted[1][0]


def test_tokens_are_counted_as_they_are_read(server, client):
    asked = {"messages": USER, "system": "Be a fish.", "tools": [WEATHER], "thinking": {"type": "adaptive"}}
    count = client.messages.count_tokens(model="minnow", **asked)
    assert not server.fake.submitted
    create(client, **asked)
    assert count.input_tokens == len(server.fake.submitted[0][0])


def test_silence_is_filled_with_pings(server):
    server.fake.script, server.fake.pause = "one", 0.12  # keep_alive_seconds is 0.05
    assert 'event: ping\ndata: {"type":"ping"}\n\n' in post(server, stream=True).text


@pytest.mark.parametrize("thinking", [{"type": "disabled"}, {"type": "enabled", "budget_tokens": 1}])
def test_a_client_that_leaves_aborts_its_request(server, thinking):
    server.fake.script, server.fake.pause = "fish " * 300, 0.01
    body = {"model": "minnow", "max_tokens": 1000, "messages": USER, "thinking": thinking}
    with server.http.stream("POST", PATH, json={**body, "stream": True}) as response:
        wait_for(lambda: len(server.fake.submitted) == (2 if thinking["type"] == "enabled" else 1))
        next(response.iter_text())
    wait_for(lambda: not server.fake.running)
    with pytest.raises(Exception, match="timed out"):
        server.http.post(PATH, json=body, timeout=0.15)
    wait_for(lambda: not server.fake.running)
    assert len(server.fake.aborted) == len(server.fake.submitted)
