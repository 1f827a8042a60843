"""The small routes, the metrics, and the static files."""

from __future__ import annotations

import pytest
from fake_service import FakeLLM, FakeService
from running import refused, running

from fathom import __version__
from fathom.engine.defaults import sampling_dict
from fathom.text.chat import ChatTemplate

USER = [{"role": "user", "content": "b"}]


def test_models(server):
    [model] = server.openai.models.list().data
    assert server.openai.models.retrieve("minnow") == model
    assert model.fathom == {
        "max_model_len": server.fake.llm.max_model_len, "thinking": True, "format": "v3", "moe_layers": 5,
        "experts": 32, "experts_per_token": 4, "mtp_depth": 1, "dtype": "BF16",
        "default": sampling_dict(server.fake.llm.sampling), "starters": ["Hello!"],
    }  # fmt: skip
    refused(server.http.get("/v1/models/deepseek-ai/DeepSeek-V3"), 404, "model", "DeepSeek-V3", "minnow")


def test_tokenize_counts_what_completions_see(server):
    tokenizer, template = server.fake.llm.tokenizer, server.fake.llm.template
    text = "two fish 你"
    answer = server.http.post("/tokenize", json={"prompt": text}).json()
    assert answer == {"tokens": tokenizer.encode(text, add_bos=True), "count": len(answer["tokens"]),
                      "max_model_len": server.fake.llm.max_model_len}  # fmt: skip
    bare = server.http.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()
    assert bare["tokens"] == answer["tokens"][1:]
    messages = [{"role": "user", "content": text}]
    seen = server.http.post("/tokenize", json={"model": "minnow", "messages": messages, "thinking": True}).json()
    assert seen["tokens"] == template.encode(tokenizer, messages, thinking=True)
    assert server.http.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": text}


@pytest.mark.parametrize(
    "path, body, param",
    [
        ("/tokenize", {}, "prompt"), ("/tokenize", {"prompt": "a", "messages": USER}, "prompt"),
        ("/tokenize", {"prompt": "a", "thinking": True}, "thinking"), ("/tokenize", {"promt": "a"}, "promt"),
        ("/tokenize", {"messages": USER, "add_special_tokens": False}, "add_special_tokens"),
        ("/tokenize", {"prompt": "a" * 10**6}, "prompt"), ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"), ("/detokenize", {}, "tokens"),
    ],
)  # fmt: skip
def test_tokenize_refuses(server, path, body, param):
    refused(server.http.post(path, json=body), 400, param)


def test_health_and_version(server):
    assert server.http.get("/health").json() == {"status": "ok"}
    assert server.http.get("/version").json() == {"version": __version__}


@pytest.mark.parametrize(
    "method, path, status",
    [("GET", "/nowhere", 404), ("GET", "/tokenize", 405), ("POST", "/health", 405), ("DELETE", "/v1/models", 405)],
)
def test_wrong_routes_have_the_same_shape(server, method, path, status):
    refused(server.http.request(method, path), status, None)


def test_metrics():
    with running(FakeService()) as server:
        server.fake.script = "one two three"
        generated = server.chat().json()["usage"]["completion_tokens"]
        server.stream("/v1/completions", prompt="x")
        server.chat(temperature=9)
        server.http.get("/nowhere")
        page = server.http.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    lines = dict(line.rsplit(" ", 1) for line in page.text.splitlines() if not line.startswith("#"))
    assert lines["fathom_time_to_first_token_seconds_count"] == "2.0"
    assert lines["fathom_inter_token_seconds_count"] == str(2.0 * (generated - 1))
    assert lines["fathom_request_seconds_count"] == "2.0"
    requests = {key: value for key, value in lines.items() if key.startswith("fathom_requests_total")}
    assert requests == {
        'fathom_requests_total{outcome="ok",route="/v1/chat/completions"}': "1.0",
        'fathom_requests_total{outcome="ok",route="/v1/completions"}': "1.0",
        'fathom_requests_total{outcome="client_error",route="/v1/chat/completions"}': "1.0",
        'fathom_requests_total{outcome="client_error",route="other"}': "1.0",
    }
    for name in ("requests_running", "requests_waiting", "cache_tokens", "cache_tokens_used", "prompt_tokens_total",
                 "generated_tokens_total", "prefix_hit_tokens_total", "preemptions_total", "drafted_tokens_total",
                 "accepted_tokens_total"):  # fmt: skip
        assert f"fathom_{name}" in lines
    assert lines["fathom_accepted_tokens_total"] == "5.0"


def test_the_page_may_load_only_what_this_server_sends(server):
    page = server.http.get("/")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy and "http" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    again = server.http.get("/", headers={"if-none-match": page.headers["etag"]})
    assert again.status_code == 304 and not again.content


@pytest.mark.parametrize("path", ["/js/", "/css", "/js/../../settings.py", "/..%2fsettings.py", "/%2e%2e/app.py",
                                  "//etc/passwd", "/docs/redoc.standalone.js", "/__init__.py", "/docs/"])  # fmt: skip
def test_nothing_outside_the_table_and_no_listing(server, path):
    assert server.http.get(path).status_code == 404


def test_docs_need_no_network(server):
    page = server.http.get("/docs")
    assert "http://" not in page.text and "https://" not in page.text
    for path in ("/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/docs/start.js"):
        assert path in page.text and server.http.get(path).status_code == 200


OTHER_FORM = "{% for m in messages %}[{{ m.name or m.role }}] {{ m.content }}\n{% endfor %}[assistant] "


def test_a_template_without_thinking_tools_but_with_names():
    with running(FakeService(FakeLLM(ChatTemplate(OTHER_FORM)))) as server:
        refused(server.chat(thinking=True), 400, "thinking")
        assert server.chat(reasoning_effort="high").status_code == 200
        tool = {"type": "function", "function": {"name": "f"}}
        refused(server.chat(tools=[tool]), 400, "tools")
        assert server.chat(messages=[{"role": "user", "name": "Ann", "content": "x"}]).status_code == 200
        assert "[Ann] x" in server.fake.llm.tokenizer.decode(server.fake.submitted[-1][0])


def test_a_template_that_always_thinks():
    source = ChatTemplate.builtin("v3").source.replace("('<think>\\n' if thinking else '')", "'<think>\\n'")
    with running(FakeService(FakeLLM(ChatTemplate(source)))) as server:
        server.fake.script = "Hm.\n</think>\n\nDeep."
        message = server.chat().json()["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("Hm.", "Deep.")
        refused(server.chat(thinking=False), 400, "thinking")
        assert server.openai.models.retrieve("minnow").fathom["thinking"] is False  # nothing to choose for a page
