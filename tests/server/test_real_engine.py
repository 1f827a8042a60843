"""The app over the real engine and the bundled model."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import httpx
import pytest
from running import Running, running, wait_for

from fathom.engine.llm import LLM
from fathom.engine.service import EngineService
from fathom.text.chat_tokens import END_THINK

USER = [{"role": "user", "content": "Hello!"}]


@pytest.fixture(scope="module")
def minnow() -> Iterator[Running]:
    service = EngineService(LLM("minnow", cache_tokens=4096, seed=1))
    service.start()
    with running(service) as server:  # type: ignore[arg-type]
        server.http.timeout = httpx.Timeout(60)
        yield server
    service.stop()


def is_idle(server: Running) -> bool:
    lines = server.http.get("/metrics").text.splitlines()
    return {"fathom_requests_running 0.0", "fathom_requests_waiting 0.0"} <= set(lines)


def test_a_real_answer(minnow):
    asked = {"model": "minnow", "messages": [{"role": "user", "content": "Hello!"}], "temperature": 0, "max_tokens": 20}
    whole = minnow.openai.chat.completions.create(**asked)
    assert whole.choices[0].message.content and whole.usage.prompt_tokens > 3
    chunks = list(minnow.openai.chat.completions.create(**asked, stream=True, extra_body={"inside": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    told = [t for c in chunks for t in c.choices[0].model_extra["fathom"]["tokens"]]
    assert len(told) == whole.usage.completion_tokens
    assert all(len(t["experts"]) == 5 and len(set(map(tuple, t["experts"]))) > 1 for t in told)


def test_a_real_answer_fits_its_schema(minnow):
    schema = {
        "type": "object", "properties": {"name": {"enum": ["fish", "bird"]}, "legs": {"enum": [0, 2]}},
        "required": ["name", "legs"], "additionalProperties": False,
    }  # fmt: skip
    answer = minnow.openai.chat.completions.create(
        model="minnow", messages=[{"role": "user", "content": "A fish"}], seed=1,
        response_format={"type": "json_schema", "json_schema": {"name": "animal", "schema": schema, "strict": True}},
    )  # fmt: skip
    assert set(json.loads(answer.choices[0].message.content)) == {"name", "legs"}
    assert answer.choices[0].finish_reason == "stop"


def test_a_real_call(minnow):
    tool = {"type": "function", "function": {"name": "swim", "parameters": {
        "type": "object", "properties": {"fast": {"type": "boolean"}}, "required": ["fast"],
        "additionalProperties": False}}}  # fmt: skip
    answer = minnow.openai.chat.completions.create(
        model="minnow", messages=[{"role": "user", "content": "Swim"}], tools=[tool], tool_choice="required",
        parallel_tool_calls=False, seed=1,
    )  # fmt: skip
    assert answer.choices[0].finish_reason == "tool_calls" and answer.choices[0].message.content is None
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name == "swim" and set(json.loads(call.function.arguments)) == {"fast"}


def test_clients_that_leave_free_a_real_engine(minnow):
    body = {"model": "minnow", "messages": USER, "stream": True, "max_tokens": 900, "ignore_eos": True}
    with httpx.stream("POST", f"{minnow.url}/v1/chat/completions", json=body) as response:
        next(response.iter_text())
    with contextlib.suppress(httpx.TimeoutException):
        httpx.post(f"{minnow.url}/v1/chat/completions", json={**body, "stream": False}, timeout=0.3)

    wait_for(lambda: is_idle(minnow), 20)


def test_a_request_that_is_given_up_before_it_began_frees_a_real_engine(minnow):
    response = minnow.post("/v1/completions", prompt=[[5, 6, 7], [99999]], max_tokens=900, ignore_eos=True)
    assert response.status_code == 400
    wait_for(lambda: is_idle(minnow), 20)
    assert not minnow.fake._callers


def test_echoed_prompts_are_scored(minnow):
    asked = {"prompt": "Once upon a time", "echo": True, "logprobs": 1, "max_tokens": 0}
    lists = minnow.post("/v1/completions", **asked).json()["choices"][0]["logprobs"]
    assert lists["token_logprobs"][0] is None and all(value < 0 for value in lists["token_logprobs"][1:])
    assert lists["token_logprobs"][lists["tokens"].index(" time")] > -1


def test_a_seed_repeats_an_answer(minnow):
    asked = {"messages": USER, "temperature": 1.5, "seed": 11, "max_tokens": 12, "n": 2}
    answers = [minnow.post("/v1/chat/completions", **asked).json()["choices"] for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0][0]["message"] != answers[0][1]["message"]


def test_a_constraint_waits_for_the_end_of_the_thought(minnow):
    end = minnow.app.state.served.llm.tokenizer.id_of(END_THINK)
    asked = {"messages": USER, "thinking": True, "regex": "yes|no", "logit_bias": {str(end): 20}, "max_tokens": 60}
    message = minnow.post("/v1/chat/completions", **asked).json()["choices"][0]["message"]
    assert message["content"] in ("yes", "no")


def test_what_the_engine_refuses_names_its_field(minnow):
    response = minnow.post("/v1/chat/completions", messages=USER, logit_bias={"8192": 1})
    assert response.status_code == 400 and response.json()["error"]["param"] == "logit_bias"


def test_prefixes_are_shared(minnow):
    asked = {"messages": [{"role": "user", "content": "Tell me a story of a fish. " * 12}], "max_tokens": 1}
    first, second = (minnow.post("/v1/chat/completions", **asked).json()["usage"] for _ in range(2))
    assert second["prompt_tokens_details"]["cached_tokens"] > first["prompt_tokens_details"]["cached_tokens"]
