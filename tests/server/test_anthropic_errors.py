"""What /v1/messages refuses, and how: errors have Anthropic's shape, whoever made them."""

from __future__ import annotations

import typing

import anthropic
import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic_client import PATH, USER, create, post
from fake_service import FakeService
from running import KEY, running, wait_for

from fathom.engine.service import EngineBusy
from fathom.server.limits import MAX_BODY_BYTES
from fathom.server.schemas.anthropic import REFUSED, CountRequest, MessagesRequest

OTHER = {"name": "other", "input_schema": {"type": "object"}}


@pytest.fixture
def client(server):
    with anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0) as client:
        yield client


def refused(response, status, type, *words):
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"type", "error"} and body["type"] == "error" and set(body["error"]) == {"type", "message"}
    assert body["error"]["type"] == type, body
    for word in words:
        assert word in body["error"]["message"], body


def test_every_field_of_anthropic_s_is_known():
    for params, model in ((message_create_params.MessageCreateParamsStreaming, MessagesRequest),
                          (message_count_tokens_params.MessageCountTokensParams, CountRequest)):  # fmt: skip
        theirs = set(typing.get_type_hints(params))
        assert theirs <= set(model.model_fields) | set(REFUSED)


@pytest.mark.parametrize(
    "field, value",
    [
        ("container", "c"), ("context_management", {}), ("diagnostics", {}), ("inference_geo", "us"), ("speed", "fast"),
        ("user_profile_id", "u"), ("workspace_id", "w"), ("mcp_servers", []), ("max_tokens", 0), ("max_tokens", None),
        ("temperature", 1.5), ("top_p", 0), ("top_k", -1), ("stop_sequences", [""]), ("stop_sequences", "x"),
        ("stream", 1), ("metadata", {"user": "x"}), ("service_tier", "priority"), ("system", 1), ("messages", []),
        ("thinking", {"type": "enabled"}), ("thinking", {"type": "enabled", "budget_tokens": 100}),
        ("thinking", {"type": "between_tools"}), ("thinking", {"type": "adaptive", "display": "omitted"}),
        ("output_config", {"effort": "low"}), ("output_config", {"format": {"type": "text"}}),
        ("output_config", {"format": {"type": "json_schema", "schema": {"not": {}}}}), ("output_format", {"type": "x"}),
        ("tools", [{"type": "web_search_20250305", "name": "web_search"}]), ("tools", [{"name": "f"}]),
        ("tools", [{**OTHER, "input_examples": [{}]}]), ("tools", [{**OTHER, "defer_loading": True}]),
        ("tools", [OTHER, OTHER]), ("tool_choice", {"type": "any"}), ("tool_choice", {"type": "required"}),
        ("cache_control", {"type": "forever"}), ("stop", ["x"]), ("model", None),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(server, field, value):
    refused(post(server, **{field: value}), 400, "invalid_request_error", field)
    if field in CountRequest.model_fields and "budget_tokens" not in str(value):
        counted = server.post(f"{PATH}/count_tokens", **{"messages": USER, field: value})
        refused(counted, 400, "invalid_request_error", field)
    assert not server.fake.submitted


def block(**fields):
    return [{"role": "user", "content": [fields]}]


USE = {"type": "tool_use", "id": "t1", "name": "weather", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t1"}
TEXT = {"type": "text", "text": "x"}


def exchange(answer, reply):
    return [*USER, {"role": "assistant", "content": answer}, {"role": "user", "content": reply}]


@pytest.mark.parametrize(
    "messages, words",
    [
        (block(type="image", source={}), ("messages[0].content[0]", "image")),
        (block(type="document", source={}), ("messages[0].content[0]", "document")),
        (exchange([{"type": "redacted_thinking", "data": "x"}], "x"), ("messages[1].content[0]", "redacted_thinking")),
        (exchange([USE], [{**RESULT, "content": [{"type": "image", "source": {}}]}]), ("messages[2].content[0]",)),
        ([{"role": "system", "content": "x"}, *USER], ("messages[0]", "system")),
        ([*USER, {"role": "assistant", "content": "I"}], ("messages[1]", "end with a user turn")),
        (exchange([USE], "x"), ("messages[2].content", "tool_result is missing", "t1")),
        (exchange([USE], [TEXT, RESULT]), ("messages[2].content[1]", "before the text")),
        (exchange([USE], [{**RESULT, "tool_use_id": "t2"}]), ("messages[2].content[0].tool_use_id", "t2")),
        (exchange([USE], [RESULT, RESULT]), ("messages[2].content[1].tool_use_id", "t1")),
        (exchange([USE, USE], [RESULT]), ("messages[1].content[1].id", "twice")),
        (exchange([USE, TEXT], [RESULT]), ("messages[1].content[1]", "text after tool_use")),
        (exchange([TEXT, {"type": "thinking", "thinking": "x", "signature": ""}], "x"), ("messages[1].content[1]",)),
        (exchange([{"type": "thinking", "thinking": "x"}], "x"), ("messages[1].content[0].signature",)),
        (block(type="text", text="x", extra=1), ("messages[0].content[0].extra",)),
        (block(type="text", text="x", citations=[{}]), ("messages[0].content[0].citations",)),
    ],
)
def test_turns_that_are_refused(server, messages, words):
    refused(post(server, messages=messages), 400, "invalid_request_error", *words)


def test_errors_around_a_request():
    with running(FakeService(), api_keys=(KEY,)) as guarded:
        with anthropic.Anthropic(base_url=guarded.url, api_key=KEY, max_retries=0) as client:
            assert create(client).content
            with pytest.raises(anthropic.NotFoundError) as unknown:
                create(client, model="whale")
            assert unknown.value.type == "not_found_error"
            with pytest.raises(anthropic.AuthenticationError) as error:
                create(client.with_options(api_key=f"{KEY}x"))
        assert error.value.type == "authentication_error" and KEY not in str(error.value)
        json_type = {"content-type": "application/json"}
        raw = guarded.http.post
        refused(raw(PATH, content=b"{", headers=json_type), 400, "invalid_request_error", "JSON")
        refused(raw(PATH, content=b"x", headers={"content-type": "text/plain"}), 415, "invalid_request_error")
        large = raw(PATH, content=b" " * (MAX_BODY_BYTES + 1), headers=json_type)
        refused(large, 413, "request_too_large", str(MAX_BODY_BYTES))
        refused(guarded.http.get(PATH, headers={"host": "shark.example"}), 403, "permission_error", "Host")
        refused(guarded.http.get(PATH), 405, "invalid_request_error")
        guarded.app.state.served.state.draining = True
        refused(post(guarded), 503, "overloaded_error")


def test_a_full_queue(server, client):
    server.fake.busy = EngineBusy("9 requests are waiting, the limit is 9", 2.2)
    for stream in (False, True):
        with pytest.raises(anthropic.RateLimitError) as error:
            create(client, stream=stream)
        assert error.value.type == "rate_limit_error" and error.value.response.headers["retry-after"] == "3"


def test_failures(server, client):
    server.fake.fail_after = 2
    refused(post(server), 500, "api_error")
    with pytest.raises(anthropic.APIStatusError) as error:
        list(create(client, stream=True))
    assert error.value.type == "api_error" and "fish" not in str(error.value)
    wait_for(lambda: not server.fake.running)


def test_hints_are_about_the_fields_of_this_route(server):
    refused(post(server, stop_sequence=["x"]), 400, "invalid_request_error", "did you mean stop_sequences?")
    response = post(server, max_completion_tokens=3)
    refused(response, 400, "invalid_request_error", "max_completion_tokens")
    assert "did you mean" not in response.text
