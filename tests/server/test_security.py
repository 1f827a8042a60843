"""Keys, hosts, sizes, origins; and what the log does not say."""

from __future__ import annotations

import socket
import time

import pytest
from fake_service import FakeService
from running import KEY, refused, running

from fathom.runtime import UserError
from fathom.server.limits import MAX_BODY_BYTES
from fathom.server.security import host_name
from fathom.server.settings import Settings, read_keys

OTHER = "another-key-0123456789"
ORIGIN = "https://fish.example"


@pytest.fixture(scope="module")
def guarded():
    with running(FakeService(), api_keys=(OTHER, KEY), cors_origins=(ORIGIN,)) as server:
        del server.http.headers["authorization"]
        yield server


@pytest.mark.parametrize("headers", [{"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY},
                                     {"authorization": f"bearer  {OTHER}"}])  # fmt: skip
def test_each_key_opens_each_route(guarded, headers):
    for path in ("/v1/models", "/v1/models/minnow", "/metrics", "/version", "/openapi.json"):
        assert guarded.http.get(path, headers=headers).status_code == 200, path


@pytest.mark.parametrize("headers", [{}, {"authorization": f"Bearer {KEY}x"}, {"authorization": KEY},
                                     {"authorization": f"Basic {KEY}"}, {"x-api-key": ""}, {"x-api-key": KEY[:-1]},
                                     {"authorization": "Bearer"}, {"x-api-key": "ключ".encode()}])  # fmt: skip
def test_without_a_key_nothing_but_health_and_static_files(guarded, headers):
    for path in ("/v1/models", "/metrics", "/version", "/openapi.json", "/nowhere"):
        response = guarded.http.get(path, headers=headers)
        assert refused(response, 401, None, "Authorization")["code"] == "invalid_api_key"
        assert KEY not in response.text
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/health", "/"):
        assert guarded.http.post(path, json={}, headers=headers).status_code == 401
    for path in ("/health", "/", "/docs", "/docs/swagger-ui.css"):
        assert guarded.http.get(path, headers=headers).status_code == 200, path


def test_the_official_client_with_a_key(guarded):
    assert guarded.openai.with_options(api_key=KEY).models.list().data[0].id == "minnow"


@pytest.mark.parametrize(
    "host", ["fish.example", "fish.example:80", "127.0.0.1.fish.example", "localhost.fish", "[::2]"]
)
def test_a_name_that_was_pointed_here_gets_nothing(server, host):
    for path in ("/health", "/", "/v1/models"):
        refused(server.http.get(path, headers={"host": host}), 403, None, "Host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:99", "[::1]:99"])
def test_names_of_this_machine(server, host):
    assert server.http.get("/health", headers={"host": host}).status_code == 200


def test_a_server_for_others_answers_to_every_name():
    assert not Settings(host="0.0.0.0").loopback and Settings(host="127.0.0.2").loopback
    assert host_name("[::1]:80") == "::1" and host_name("a:80") == "a"


def test_cors_is_off_unless_asked_for(server, guarded):
    preflight = {"origin": ORIGIN, "access-control-request-method": "POST"}
    assert server.http.options("/v1/models", headers=preflight).status_code == 405
    assert "access-control-allow-origin" not in server.http.get("/v1/models", headers={"origin": ORIGIN}).headers
    allowed = guarded.http.options("/v1/models", headers=preflight)
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == ORIGIN
    other = guarded.http.options("/v1/models", headers={**preflight, "origin": "https://shark.example"})
    assert other.status_code == 400 and "access-control-allow-origin" not in other.headers


def test_a_declared_body_that_is_too_large_is_not_read(server):
    address = server.url.removeprefix("http://")
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as connection:
        connection.sendall(
            f"POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode()
        )
        assert connection.recv(64).startswith(b"HTTP/1.1 413")


def test_a_chunked_body_is_counted(server):
    chunks = (b" " * 2**20 for _ in range(MAX_BODY_BYTES // 2**20 + 2))
    response = server.http.post("/v1/completions", content=chunks, headers={"content-type": "application/json"})
    refused(response, 413, None, str(MAX_BODY_BYTES))
    assert server.http.get("/health").status_code == 200


def test_a_body_that_stops_coming_is_given_up(server, monkeypatch):
    monkeypatch.setattr("fathom.server.security.BODY_SECONDS", 0.1)
    address = server.url.removeprefix("http://")
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=5) as connection:
        connection.sendall(
            f"POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
            'Content-Length: 100\r\n\r\n{"'.encode()
        )
        assert connection.recv(64).startswith(b"HTTP/1.1 408")


def test_a_connection_without_a_request_is_closed(server, monkeypatch):
    """Nothing sent, half a head, half a second head: closed. A slow answer is not."""
    monkeypatch.setattr("fathom.server.serving.IDLE_SECONDS", 0.3)
    address = server.http.base_url.host, server.http.base_url.port
    whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for sent, answers in ((b"", 0), (b"GET /health HTT", 0), (whole, 1), (whole + b"GET /", 1)):
        with socket.create_connection(address, timeout=5) as connection:
            connection.sendall(sent)
            received = b""
            while piece := connection.recv(65536):  # b"" is the end; waiting in vain raises after 5 s
                received += piece
        assert received.count(b"HTTP/1.1 200") == answers
    server.fake.script, server.fake.pause = "one two three four", 0.12
    assert len(server.stream("/v1/chat/completions", messages=[{"role": "user", "content": "x"}])) > 4


def test_a_body_that_drips_is_given_up(server, monkeypatch):
    monkeypatch.setattr("fathom.server.security.WHOLE_BODY_SECONDS", 0.4)

    def drip():
        for _ in range(100):
            yield b" "
            time.sleep(0.05)

    headers = {"content-type": "application/json"}
    response = server.http.post("/v1/chat/completions", content=drip(), headers=headers)
    assert response.status_code == 408


def test_a_body_of_many_mistakes_costs_little(server):
    """A field too many is named; a million are not read."""
    many = {f"field_{i}": 0 for i in range(100_000)}
    error = refused(server.http.post("/v1/chat/completions", json=many), 400, None)
    assert "100000 fields" in error["message"]
    some = {"messages": [{"role": "user", "content": "x"}], **{f"field_{i}": 0 for i in range(200)}}
    error = refused(server.http.post("/v1/chat/completions", json=some), 400, "field_0")
    assert (
        "field_4" in error["message"] and "field_4 and more; leave" in error["message"] and len(error["message"]) < 300
    )


def test_keys_from_file_and_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{KEY}\n\n  {OTHER}  \n")
    assert read_keys(str(file)) == (KEY, OTHER)
    monkeypatch.setenv("FATHOM_API_KEYS", f"key-number-three,,{KEY}")
    assert set(read_keys(str(file))) == {KEY, OTHER, "key-number-three"}
    assert KEY not in repr(Settings(api_keys=(KEY,)))


@pytest.mark.parametrize("text", ["", "# none\n", "short\n", "with space inside\n", "schlüssel-lang-genug\n"])
def test_key_files_that_are_refused(tmp_path, text):
    file = tmp_path / "keys"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_keys(str(file))
    assert "short" not in str(error.value) and "schl" not in str(error.value)


def test_a_key_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="key file"):
        read_keys(str(tmp_path / "none"))


def test_the_log_has_neither_prompts_nor_keys(capfd):
    with running(FakeService(), quiet=False, api_keys=(KEY,)) as server:
        server.chat("a secret of the sea")
        server.http.get("/v1/models?api_key=hunter2-hunter2", headers={"x-request-id": "my-id.7"})
        server.http.get("/a%0Ab%1b[31m", headers={"x-request-id": "no\tgood " + "x" * 200})
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("POST /v1/chat/completions 200 ") and " tokens " in lines[0]
    assert lines[1].startswith("GET /v1/models 200 ") and lines[1].endswith(" my-id.7")
    assert lines[2].startswith("GET /a%0Ab%1B%5B31m 404 ")
    for word in ("secret", "Hello there", KEY, "hunter2", "good"):
        assert not any(word in line for line in lines)


def test_request_ids(server):
    assert server.http.get("/health", headers={"x-request-id": "abc-1.2_3"}).headers["x-request-id"] == "abc-1.2_3"
    made = [server.http.get("/health", headers={"x-request-id": bad}).headers["x-request-id"] for bad in ("a b", "")]
    assert len(set(made)) == 2 and all(i.isalnum() for i in made)
    assert server.http.get("/nowhere").headers["x-request-id"]
