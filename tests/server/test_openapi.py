"""The OpenAPI document: it describes what the server does, and no request made from it is answered with a 500."""

from __future__ import annotations

import pytest
import schemathesis
from fake_service import FakeService
from hypothesis import HealthCheck, settings
from running import KEY
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from fathom.server.app import create_app
from fathom.server.settings import Settings

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
APP = create_app(FakeService(), Settings(quiet=True, host="0.0.0.0"))  # type: ignore[arg-type]
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP)


@SCHEMA.parametrize()
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_requests_made_from_the_document(case):
    case.call_and_validate(checks=CHECKS)


def test_every_route_is_documented():
    document = APP.openapi()
    assert set(document["paths"]) >= {
        "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model}", "/tokenize", "/detokenize",
        "/health", "/metrics", "/version", "/v1/messages", "/v1/messages/count_tokens", "/v1/responses",
    }  # fmt: skip
    chat = document["components"]["schemas"]["ChatRequest"]
    assert chat["additionalProperties"] is False and set(chat["required"]) == {"model", "messages"}
    assert "422" not in document["paths"]["/v1/chat/completions"]["post"]["responses"]


@pytest.mark.parametrize("keys", [(), (KEY,)])
def test_keys_are_in_the_document_if_they_are_asked_for(keys):
    document = create_app(FakeService(), Settings(api_keys=keys)).openapi()  # type: ignore[arg-type]
    assert ("security" in document["paths"]["/v1/models"]["get"]) == bool(keys)
    assert "security" not in document["paths"]["/health"]["get"]
