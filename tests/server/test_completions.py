"""/v1/completions: every kind of prompt, echo, logprobs, filling in the middle."""

from __future__ import annotations

import typing

import pytest
from fake_service import LOGPROB
from openai.types import completion_create_params as openai_params
from running import refused

from fathom.engine.service import EngineBusy
from fathom.server.limits import MAX_PROMPTS
from fathom.server.schemas.completion import CompletionRequest


def test_every_field_of_openai_s_is_known():
    theirs = set(typing.get_type_hints(openai_params.CompletionCreateParamsStreaming))
    assert theirs <= set(CompletionRequest.model_fields)


def test_a_text(server):
    server.fake.script = " a fish."
    answer = server.openai.completions.create(model="minnow", prompt="There was")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (" a fish.", "stop")
    assert answer.object == "text_completion" and answer.choices[0].logprobs is None
    assert server.fake.submitted[0][0] == server.fake.llm.tokenizer.encode("There was", add_bos=True)
    assert server.fake.submitted[0][1].max_tokens == 16


def test_prompts_of_every_kind(server):
    server.fake.script = lambda prompt: f"<{prompt}>"
    tokenizer = server.fake.llm.tokenizer
    one, two = tokenizer.encode("one fish"), tokenizer.encode("two fish")
    for prompt in (["one fish", "two fish"], [one, two]):
        answer = server.openai.completions.create(model="minnow", prompt=prompt, n=2, max_tokens=None)
        assert [c.text for c in answer.choices] == ["<one fish>"] * 2 + ["<two fish>"] * 2
        assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    assert server.openai.completions.create(model="minnow", prompt=one).choices[0].text == "<one fish>"
    assert server.fake.submitted[-1][0] == one


def test_a_stream_says_what_a_whole_answer_says(server):
    server.fake.script = lambda prompt: f" and {prompt} wörter 你好"
    asked = {"prompt": ["one", "two"], "max_tokens": 30, "logprobs": 2, "echo": True, "n": 2}
    whole = server.post("/v1/completions", **asked).json()["choices"]
    *chunks, usage, done = server.stream("/v1/completions", **asked, stream_options={"include_usage": True})
    assert done == "[DONE]" and usage["usage"]["completion_tokens"] > 8
    for choice in whole:
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"]
        assert [c["finish_reason"] for c in mine][-1] == choice["finish_reason"]
        for name, values in choice["logprobs"].items():
            assert [v for c in mine for v in c["logprobs"][name]] == values


def test_echo_with_logprobs(server):
    server.fake.script = " fish"
    tokenizer = server.fake.llm.tokenizer
    choice = server.openai.completions.create(model="minnow", prompt="one 你", echo=True, logprobs=1).choices[0]
    assert choice.text == "one 你 fish"
    prompt, shown = tokenizer.encode("one 你", add_bos=True), choice.logprobs
    count = len(prompt) + len(tokenizer.encode(" fish"))
    assert [len(v) for v in (shown.tokens, shown.token_logprobs, shown.top_logprobs, shown.text_offset)] == [count] * 4
    assert shown.token_logprobs == [None, *[LOGPROB] * (count - 1)] and shown.top_logprobs[0] is None
    assert shown.tokens[1] == "one" and any(t.startswith("bytes:\\x") for t in shown.tokens)
    for token, offset in zip(shown.tokens, shown.text_offset, strict=True):
        if not token.startswith(("bytes:", "<｜")):
            assert choice.text[offset:].startswith(token)


def test_a_prompt_can_be_scored_alone(server):
    choice = server.post("/v1/completions", prompt="one two", echo=True, logprobs=0, max_tokens=0).json()
    assert choice["choices"][0]["text"] == "one two" and choice["choices"][0]["finish_reason"] == "length"
    assert len(choice["choices"][0]["logprobs"]["tokens"]) == choice["usage"]["prompt_tokens"]
    assert choice["usage"]["completion_tokens"] == 0


def test_filling_in_the_middle(server):
    server.post("/v1/completions", prompt="def f(", suffix="): <｜User｜>")
    tokenizer = server.fake.llm.tokenizer
    begin, hole, end = (tokenizer.id_of(f"<｜fim▁{name}｜>") for name in ("begin", "hole", "end"))
    suffix = tokenizer.encode_plain("): <｜User｜>")
    assert server.fake.submitted[0][0] == [0, begin, *tokenizer.encode("def f("), hole, *suffix, end]


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"best_of": 3}, "best_of"), ({"prompt": []}, "prompt"), ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [1, "a"]}, "prompt["), ({"prompt": ["x"] * (MAX_PROMPTS + 1)}, "prompt"),
        ({"prompt": None}, "prompt"), ({"max_tokens": 0}, "max_tokens"), ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"), ({"echo": True, "suffix": "x"}, "echo"), ({"nn": 1}, "nn"),
        ({"prompt": ["x"] * MAX_PROMPTS, "n": 8}, "n"), ({"prompt": "fish " * 10_000}, "prompt"),
        ({"prompt": [99999]}, "prompt"), ({"messages": []}, "messages"),
    ],
)  # fmt: skip
def test_refusals(server, fields, param):
    response = server.post("/v1/completions", **{"prompt": "x", **fields})
    assert response.status_code == 400 and response.json()["error"]["param"].startswith(param), response.text
    assert not server.fake.running


def test_best_of_n_is_n(server):
    assert server.post("/v1/completions", prompt="x", best_of=2, n=2).status_code == 200


def test_all_prompts_or_none(server):
    server.fake.busy, server.fake.busy_after = EngineBusy("2 requests are waiting, the limit is 2", 3), 2
    refused(server.post("/v1/completions", prompt=["a", "b", "c"]), 429, None)
    assert len(server.fake.aborted) == 2 and not server.fake.running
