from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_service import FakeLLM, FakeService
from running import Running, running

from fathom.engine.params import SamplingParams


@pytest.fixture(scope="session")
def _server() -> Iterator[Running]:
    service = FakeService(FakeLLM(sampling=SamplingParams(temperature=0.6, top_p=0.95)))
    with running(service, keep_alive_seconds=0.05, starters=("Hello!",)) as server:
        yield server


@pytest.fixture
def server(_server: Running) -> Running:
    """A server without keys over a fake engine, as new."""
    _server.fake.reset()
    return _server
