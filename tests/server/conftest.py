from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_service import FakeService
from running import Running, running

from fathom.server.settings import Sampling


@pytest.fixture(scope="session")
def _server() -> Iterator[Running]:
    with running(FakeService(), keep_alive_seconds=0.05, sampling=Sampling(0.6, 0.95)) as server:
        yield server


@pytest.fixture
def server(_server: Running) -> Running:
    """A server without keys over a fake engine, as new."""
    _server.fake.reset()
    return _server
