"""/v1/chat/completions by OpenAI's own client: whole answers, streams, and that the two agree."""

from __future__ import annotations

import pytest
from fake_service import LOGPROB

from fathom.engine.defaults import sampling_dict
from fathom.engine.params import SamplingParams
from fathom.text.chat_tokens import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, END_THINK, SEP

USER = [{"role": "user", "content": "Hi"}]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "of a place", "parameters": {"type": "object", "properties": {}}},
}


def call(name: str, arguments: str) -> str:
    return f"{CALL_BEGIN}function{SEP}{name}\n```json\n{arguments}\n```{CALL_END}"


SEA, FJORD = '{"at": "sea"}', '{"at": "fjord"}'
CALLS = f"Let me see.{CALLS_BEGIN}{call('weather', SEA)}\n{call('weather', FJORD)}{CALLS_END}"


def joined(chunks, index=0):
    """What a stream says for one choice, put together again."""
    out = {"content": "", "reasoning": "", "calls": {}, "finish": None, "roles": 0}
    for chunk in chunks:
        for choice in chunk.choices:
            if choice.index != index:
                continue
            out["roles"] += choice.delta.role == "assistant"
            out["content"] += choice.delta.content or ""
            out["reasoning"] += getattr(choice.delta, "reasoning_content", None) or ""
            for piece in choice.delta.tool_calls or []:
                known = out["calls"].setdefault(piece.index, {"id": piece.id, "name": piece.function.name, "args": ""})
                known["args"] += piece.function.arguments or ""
            assert out["finish"] is None, "a chunk after the end"
            out["finish"] = choice.finish_reason
    return out


def test_a_whole_answer(server):
    server.fake.script = "The sea is deep."
    answer = server.openai.chat.completions.create(model="minnow", messages=USER)
    [choice] = answer.choices
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (
        "The sea is deep.",
        "assistant",
        "stop",
    )
    assert answer.object == "chat.completion" and answer.model == "minnow" and answer.id.startswith("chatcmpl-")
    usage = answer.usage
    assert usage.prompt_tokens == len(server.fake.submitted[0][0])
    assert usage.completion_tokens == len(server.fake.llm.tokenizer.encode("The sea is deep.")) + 1
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens == 2
    details = usage.completion_tokens_details
    assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (3, 1)
    assert (
        usage.fathom["context_used"] == usage.total_tokens
        and usage.fathom["context_limit"] == server.fake.llm.max_model_len
    )


def test_the_prompt_is_the_template_s(server):
    server.openai.chat.completions.create(
        model="minnow", messages=[{"role": "developer", "content": "Be brief."}, *USER]
    )
    llm = server.fake.llm
    messages = [{"role": "system", "content": "Be brief."}, *USER]
    assert server.fake.submitted[0][0] == llm.template.encode(llm.tokenizer, messages)


@pytest.mark.parametrize("text", ["The sea is deep.", "wörter 你好 🐟", CALLS, "", "{}"])
def test_a_stream_says_what_a_whole_answer_says(server, text):
    server.fake.script = text
    asked = {"model": "minnow", "messages": USER, "tools": [WEATHER]}
    whole = server.openai.chat.completions.create(**asked).choices[0]
    stream = joined(list(server.openai.chat.completions.create(**asked, stream=True)))
    assert stream["roles"] == 1
    assert stream["content"] == (whole.message.content or "")
    assert stream["finish"] == whole.finish_reason
    calls = [(c.function.name, c.function.arguments) for c in whole.message.tool_calls or []]
    assert [(c["name"], c["args"]) for c in stream["calls"].values()] == calls
    assert list(stream["calls"]) == list(range(len(calls)))


def test_tool_calls(server):
    server.fake.script = CALLS
    choice = server.openai.chat.completions.create(model="minnow", messages=USER, tools=[WEATHER]).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content == "Let me see."
    assert [c.function.arguments for c in choice.message.tool_calls] == ['{"at": "sea"}', '{"at": "fjord"}']
    ids = [c.id for c in choice.message.tool_calls]
    assert all(i.startswith("call_") for i in ids) and len(set(ids)) == 2
    prompt = server.fake.llm.tokenizer.decode(server.fake.submitted[0][0])
    assert "weather" in prompt and "of a place" in prompt


def test_a_call_s_output_goes_back_to_the_model(server):
    server.fake.script = CALLS
    message = server.openai.chat.completions.create(model="minnow", messages=USER, tools=[WEATHER]).choices[0].message
    outputs = [{"role": "tool", "tool_call_id": c.id, "content": f"out {i}"} for i, c in enumerate(message.tool_calls)]
    server.fake.script = "Rain."
    answer = server.openai.chat.completions.create(
        model="minnow", messages=[*USER, message, *reversed(outputs)], tools=[WEATHER]
    )
    assert answer.choices[0].message.content == "Rain."
    prompt = server.fake.llm.tokenizer.decode(server.fake.submitted[1][0])
    assert 0 < prompt.index("out 0") < prompt.index("out 1")


def test_tool_choice_none_bans_calls_and_does_not_read_them(server):
    server.fake.script = CALLS
    choice = server.openai.chat.completions.create(
        model="minnow", messages=USER, tools=[WEATHER], tool_choice="none"
    ).choices[0]
    assert choice.message.tool_calls is None and choice.finish_reason == "stop"
    banned = server.fake.llm.tokenizer.id_of(CALLS_BEGIN)
    assert server.fake.submitted[0][1].logit_bias == {banned: -100}


STRICT = {"type": "function", "function": {**WEATHER["function"], "name": "strict", "strict": True}}
OTHER = {"type": "function", "function": {**WEATHER["function"], "name": "other"}}
FIRST, TWO = call("weather", "{}"), f"{call('weather', '{}')}\n{call('other', '{}')}"


@pytest.mark.parametrize(
    "asked, fits, does_not",
    [
        ({"tool_choice": "required"}, [f"{FIRST}", TWO], ["Hm.", "{}"]),
        ({"tool_choice": "required", "parallel_tool_calls": False}, [FIRST], [TWO]),
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, [FIRST],
         [call("other", "{}"), TWO, "Hm."]),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [
            {"type": "function", "function": {"name": "weather"}}]}}}, [FIRST, "Hm."], [call("other", "{}")]),
        ({"parallel_tool_calls": False}, [FIRST, "Hm.", "{}"], [TWO]),
        ({"response_format": {"type": "json_object"}}, [FIRST, TWO, '{"a": 1}'], ["Hm.", "[]"]),
        ({"response_format": {"type": "json_object"}, "tool_choice": "required"}, [FIRST], ['{"a": 1}']),
        ({"tools": [WEATHER, OTHER, STRICT]}, [call("strict", '{"at": 1}'), "Hm."], [call("strict", "{1}")]),
    ],
)  # fmt: skip
def test_constrained_calls(server, asked, fits, does_not):
    """What the engine is told to allow, walked through token by token."""
    assert server.chat(**{"tools": [WEATHER, OTHER], **asked}).status_code == 200
    grammar, compiler = server.fake.submitted[0][1].grammar, server.fake.llm.engine.compiler

    def allowed(text: str) -> bool:
        matcher = compiler.matcher(grammar)
        whole = f"{CALLS_BEGIN}{text}{CALLS_END}" if CALL_BEGIN in text else text
        for token in [*server.fake.llm.tokenizer.encode(whole), 1]:
            if not matcher.allows(token):
                return False
            matcher.advance(token)
        return True

    assert [text for text in fits if not allowed(text)] == []
    assert [text for text in does_not if allowed(text)] == []


def test_unconstrained_tools_leave_the_model_free(server):
    server.chat(tools=[WEATHER])
    assert server.fake.submitted[0][1].grammar is None


@pytest.mark.parametrize("asked", [{"thinking": True}, {"reasoning_effort": "high"},
                                   {"chat_template_kwargs": {"enable_thinking": True}}])  # fmt: skip
def test_a_thought_is_apart(server, asked):
    server.fake.script = f"Hm, deep.\n{END_THINK}\n\nDeep."
    message = server.chat(**asked).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm, deep.", "Deep.")
    assert server.fake.submitted[0][2]["thinking_open"] is True
    chunks = list(server.openai.chat.completions.create(model="minnow", messages=USER, stream=True, extra_body=asked))
    stream = joined(chunks)
    assert (stream["reasoning"], stream["content"]) == ("Hm, deep.", "Deep.")


def test_reasoning_tokens_are_counted_and_have_no_logprobs(server):
    server.fake.script = f"Hm.\n{END_THINK}\n\nDeep."
    tokenizer = server.fake.llm.tokenizer
    answer = server.chat(thinking=True, logprobs=True).json()
    thought = len(tokenizer.encode(f"Hm.\n{END_THINK}"))
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == thought
    shown = [entry["token"] for entry in answer["choices"][0]["logprobs"]["content"]]
    assert "".join(shown).strip() == "Deep."


@pytest.mark.parametrize("effort", ["none", "minimal", None])
def test_no_thought_unless_asked(server, effort):
    server.chat(**({"reasoning_effort": effort} if effort else {}))
    assert server.fake.submitted[0][2]["thinking_open"] is False


def test_several_choices_interleave(server):
    server.fake.script = ["one two three four", "eins zwei drei vier"]
    answer = server.openai.chat.completions.create(model="minnow", messages=USER, n=2)
    assert [c.message.content for c in answer.choices] == server.fake.script
    chunks = list(server.openai.chat.completions.create(model="minnow", messages=USER, n=2, stream=True))
    assert [joined(chunks, i)["content"] for i in (0, 1)] == server.fake.script
    order = [c.choices[0].index for c in chunks if c.choices[0].delta.content]
    assert order != sorted(order)


def test_usage_comes_last_and_only_when_asked(server):
    options = {"include_usage": True}
    events = server.stream("/v1/chat/completions", messages=USER, stream_options=options)
    *chunks, usage, done = events
    assert done == "[DONE]" and usage["choices"] == []
    assert usage["usage"] == server.chat().json()["usage"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert all("usage" not in chunk for chunk in server.stream("/v1/chat/completions", messages=USER)[:-1])


def test_the_first_chunk_is_the_role_and_the_last_the_reason(server):
    *chunks, done = server.stream("/v1/chat/completions", messages=USER)
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_logprobs(server):
    server.fake.script = "你 fish"
    tokens = server.fake.llm.tokenizer.encode("你 fish")
    asked = {"model": "minnow", "messages": USER, "logprobs": True, "top_logprobs": 2}
    shown = server.openai.chat.completions.create(**asked).choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in shown).decode() == "你 fish"
    assert [entry.logprob for entry in shown] == [LOGPROB] * len(tokens)
    assert [len(entry.top_logprobs) for entry in shown] == [2] * len(tokens)
    streamed = [
        entry
        for chunk in server.openai.chat.completions.create(**asked, stream=True)
        for entry in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])
    ]
    assert streamed == shown


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_length(server, field):
    server.fake.script = "one two three four five six seven"
    answer = server.chat(**{field: 3}).json()
    assert answer["choices"][0]["finish_reason"] == "length" and answer["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("stop", ["ree", ["xyz", "ree"]])
def test_stop(server, stop):
    server.fake.script = "one two three four"
    choice = server.openai.chat.completions.create(model="minnow", messages=USER, stop=stop).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("one two th", "stop")


def test_inside_tells_of_every_token_once(server):
    server.fake.script = "wörter 你好 🐟 stop here"
    tokens = server.fake.llm.tokenizer.encode("wörter 你好 🐟 ")
    asked = {"messages": USER, "inside": True, "stop": "stop"}
    events = server.stream("/v1/chat/completions", **asked)[:-1]
    told = [token for event in events for token in event["choices"][0]["fathom"]["tokens"]]
    assert [token["id"] for token in told][: len(tokens) - 1] == tokens[:-1]
    assert told[0]["experts"] == [[0, 1, 2, 3]] * 5 and [t["drafted"] for t in told[:2]] == [False, True]
    assert server.post("/v1/chat/completions", **asked).json()["choices"][0]["fathom"]["tokens"] == told
    assert "fathom" not in server.chat().json()["choices"][0]


def test_every_sampling_field_reaches_the_engine(server):
    fields = {
        "temperature": 0.3, "top_p": 0.5, "seed": 7, "presence_penalty": 0.1, "frequency_penalty": -0.2, "n": 2,
        "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True, "max_tokens": 9,
    }  # fmt: skip
    assert server.chat(**fields, logit_bias={"17": 3}, stop=["x"], priority=-3).status_code == 200
    _, params, more = server.fake.submitted[0]
    for name, value in fields.items():
        assert getattr(params, name) == value
    assert params.logit_bias == {17: 3} and params.stop == ("x",) and more["priority"] == -3


def test_what_a_request_leaves_out_is_the_checkpoint_s_advice(server, monkeypatch):
    advice = {"temperature": 0.6, "top_p": 0.95, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1, "max_tokens": 4}
    monkeypatch.setattr(server.fake.llm, "sampling", SamplingParams(**advice))
    server.chat()
    server.chat(temperature=None, top_p=1, top_k=0, max_tokens=9)
    server.post("/v1/completions", prompt="Hi", max_tokens=None)
    server.post("/v1/responses", input="Hi")
    server.post("/v1/messages", messages=[{"role": "user", "content": "Hi"}], max_tokens=7, top_p=0.5)
    chat, said, completion, response, message = (sampling_dict(params) for _, params, _ in server.fake.submitted)
    assert chat == completion == response == advice
    assert said == advice | {"top_p": 1, "top_k": 0, "max_tokens": 9}
    assert message == advice | {"top_p": 0.5, "max_tokens": 7}
    about = server.http.get("/v1/models").json()["data"][0]["fathom"]
    assert about["default"] == advice and about["starters"] == ["Hello!"]


def test_several_answers_of_a_greedy_checkpoint_are_drawn(server, monkeypatch):
    monkeypatch.setattr(server.fake.llm, "sampling", SamplingParams(temperature=0, top_p=0.9))
    server.chat(n=2)
    assert (server.fake.submitted[0][1].temperature, server.fake.submitted[0][1].top_p) == (1, 0.9)
    assert server.chat(n=2, temperature=0).status_code == 400


@pytest.mark.parametrize(
    "asked, kind",
    [
        ({"response_format": {"type": "json_object"}}, "json_object"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"},
                                                                     "strict": True}}}, "json_schema"),
        ({"regex": "[a-z]+"}, "regex"),
        ({"lark": 'start: "a"'}, "lark"),
        ({"response_format": {"type": "text"}}, None),
    ],
)  # fmt: skip
def test_constraints(server, asked, kind):
    assert server.chat(**asked).status_code == 200
    grammar = server.fake.submitted[0][1].grammar
    assert (grammar and grammar.kind) == kind


def test_metadata_and_tier_come_back(server):
    answer = server.chat(metadata={"a": "b"}, service_tier="auto", store=False, user="u", safety_identifier="s",
                         prompt_cache_key="k", verbosity="medium", modalities=["text"]).json()  # fmt: skip
    assert answer["metadata"] == {"a": "b"} and answer["service_tier"] == "default"
