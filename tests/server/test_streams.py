"""What happens around an answer: clients that leave, silence, failures, a full queue."""

from __future__ import annotations

import json

import pytest
from fake_service import FakeService
from running import refused, running, wait_for

from fathom.engine.service import EngineBusy

ROUTES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"prompt": ["one", "two"]},
}
LONG = "fish " * 300


@pytest.mark.parametrize("path", ROUTES)
def test_a_client_that_leaves_a_stream_aborts_its_requests(server, path):
    server.fake.script, server.fake.pause = LONG, 0.05
    body = {"model": "minnow", "stream": True, "max_tokens": 1000, **ROUTES[path]}
    with server.http.stream("POST", path, json=body) as response:
        pieces = response.iter_text()  # kept: an iterator that is dropped closes the connection
        next(pieces)
        assert server.fake.running
    wait_for(lambda: not server.fake.running)
    assert len(server.fake.aborted) == len(server.fake.submitted)


@pytest.mark.parametrize("path", ROUTES)
def test_a_client_that_gives_up_waiting_aborts_its_requests(server, path):
    server.fake.script, server.fake.pause = LONG, 0.05
    body = {"model": "minnow", "max_tokens": 1000, **ROUTES[path]}
    with pytest.raises(Exception, match="timed out"):
        server.http.post(path, json=body, timeout=0.1)
    wait_for(lambda: not server.fake.running)
    assert len(server.fake.aborted) == len(server.fake.submitted)


@pytest.mark.parametrize("path", ROUTES)
def test_an_answer_that_ends_aborts_nothing(server, path):
    server.post(path, **ROUTES[path])
    server.stream(path, **ROUTES[path])
    wait_for(lambda: not server.fake.running)
    assert not server.fake.aborted


@pytest.mark.parametrize("path", ROUTES)
def test_silence_is_filled_with_comments(server, path):
    server.fake.script, server.fake.pause = "one", 0.12  # keep_alive_seconds is 0.05
    body = {"model": "minnow", "stream": True, **ROUTES[path]}
    text = server.http.post(path, json=body).text
    assert ": keep-alive\n\n" in text and text.endswith("data: [DONE]\n\n")
    assert server.stream(path, **ROUTES[path])[-1] == "[DONE]"


@pytest.mark.parametrize("path", ROUTES)
def test_a_failure_in_a_stream_is_an_event(server, path):
    server.fake.fail_after = 2
    *_, last = server.stream(path, **ROUTES[path])
    assert last["error"]["type"] == "server_error"
    assert "fish" not in json.dumps(last), "what happened inside is for the log"
    wait_for(lambda: not server.fake.running)


@pytest.mark.parametrize("path", ROUTES)
def test_a_failure_before_the_answer_is_a_500(server, path):
    server.fake.fail_after = 2
    error = refused(server.post(path, **ROUTES[path]), 500, None)
    assert "fish" not in error["message"]
    assert not server.fake.running


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ROUTES)
def test_a_full_queue_is_a_429_that_says_when(server, path, stream):
    server.fake.busy = EngineBusy("9 requests are waiting, the limit is 9", 2.2)
    response = server.post(path, stream=stream, **ROUTES[path])
    refused(response, 429, None, "9", "3 s")
    assert response.headers["retry-after"] == "3"


def test_while_it_ends_a_server_says_so(server):
    with running(FakeService()) as ending:
        ending.app.state.served.state.draining = True
        response = ending.chat()
        assert refused(response, 503, None)["code"] == "draining" and "retry-after" in response.headers
        assert ending.http.get("/health").status_code == 503
        assert ending.http.get("/health").json() == {"status": "draining"}
        assert ending.http.get("/metrics").status_code == 200
