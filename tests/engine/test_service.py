"""The engine in its thread: many callers, callers that leave, a full queue, an engine that fails, the end."""

from __future__ import annotations

import asyncio
import time

import pytest
from tiny import CONTEXT

from fathom.engine.llm import LLM
from fathom.engine.params import SamplingParams
from fathom.engine.service import EngineBusy, EngineFailure, EngineService
from fathom.runtime import UserError

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture
def service(model, tokenizer):
    service = EngineService(LLM.from_parts(model, tokenizer, max_running=4), max_waiting=6)
    service.start()
    yield service
    service.stop()


async def collect(stream):
    return [delta async for delta in stream]


async def until(condition, seconds=10):
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come true")


def test_answers_equal_those_of_the_llm(service, model, tokenizer):
    prompts = [[0, 5 + i, 9] for i in range(5)]

    async def body():
        streams = [service.submit(p, GREEDY, request_id="same id is fine") for p in prompts]
        return await asyncio.gather(*(collect(s) for s in streams))

    answers = asyncio.run(body())
    expected = LLM.from_parts(model, tokenizer).generate(prompts, GREEDY)
    assert [[d.token_id for d in a] for a in answers] == [o.outputs[0].token_ids for o in expected]
    assert all(a[-1].metrics.generated_tokens == 12 for a in answers)


def test_a_caller_that_leaves_frees_its_pages(service):
    async def body():
        stream = service.submit([0, 5], GREEDY.replace(max_tokens=None), request_id="a")
        async for _ in stream:
            break
        await stream.aclose()
        task = asyncio.create_task(collect(service.submit([0, 6], GREEDY.replace(max_tokens=None), request_id="b")))
        await asyncio.sleep(0.01)
        task.cancel()
        await until(lambda: service.stats().running == 0 and service.stats().cache_tokens_used == 0)

    asyncio.run(body())


def slowed(service, monkeypatch):
    """Steps of 50 ms: whoever looks every 10 ms sees a request run."""
    own = service.llm.engine.runner.run
    monkeypatch.setattr(service.llm.engine.runner, "run", lambda *a, **k: (time.sleep(0.05), own(*a, **k))[1])


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_an_iterator_that_is_never_begun_frees_its_pages_too(service, monkeypatch, how):
    slowed(service, monkeypatch)

    async def body():
        stream = service.submit([0, 5], GREEDY.replace(max_tokens=None), request_id="a")
        await until(lambda: service.stats().running == 1)
        if how == "closed":
            await stream.aclose()
        del stream
        await until(lambda: service.stats().running == 0)

    asyncio.run(body())


def test_deltas_wait_for_a_late_reader(service):
    async def body():
        stream = service.submit([0, 5], GREEDY, request_id="a")
        await until(lambda: service.stats().generated_tokens >= 12)
        assert len(await collect(stream)) == 12

    asyncio.run(body())


def test_a_full_queue_is_said_at_once(service):
    async def body():
        streams, refused = [], None
        for _ in range(40):
            try:
                streams.append(service.submit([0, 5], GREEDY, request_id="a"))
            except EngineBusy as error:
                refused = error
                break
        assert refused is not None and refused.retry_after >= 1 and "limit is 6" in str(refused)
        await asyncio.gather(*(collect(s) for s in streams))

    asyncio.run(body())


def test_mistakes_are_raised_before_anything_runs(service):
    async def body():
        with pytest.raises(UserError, match="context holds"):
            service.submit([5] * CONTEXT, GREEDY, request_id="a")

    asyncio.run(body())


def test_a_failing_engine_tells_its_callers_and_goes_on(service, monkeypatch):
    async def body():
        with monkeypatch.context() as patched:
            patched.setattr(service.llm.engine.runner, "run", lambda *a, **k: 1 / 0)
            with pytest.raises(EngineFailure, match="division"):
                await collect(service.submit([0, 5], GREEDY, request_id="a"))
        assert len(await collect(service.submit([0, 5], GREEDY, request_id="b"))) == 12

    asyncio.run(body())


def test_draining_finishes_what_runs_and_refuses_what_is_new(service):
    async def body():
        task = asyncio.create_task(collect(service.submit([0, 5], GREEDY.replace(max_tokens=100), request_id="a")))
        await asyncio.sleep(0)
        drained = asyncio.create_task(service.drain(20))
        await asyncio.sleep(0)
        with pytest.raises(EngineBusy) as refused:
            service.submit([0, 6], GREEDY, request_id="b")
        assert refused.value.draining
        rest = await collect(service.submit([0, 6], GREEDY, request_id="a", continues=True))  # of a running answer
        assert len(rest) == 12
        assert await drained and len(await task) == 100

    asyncio.run(body())


def test_stopping_tells_those_who_wait(model, tokenizer, monkeypatch):
    service = EngineService(LLM.from_parts(model, tokenizer))
    slowed(service, monkeypatch)
    service.start()

    async def body():
        task = asyncio.create_task(collect(service.submit([0, 5], GREEDY.replace(max_tokens=None), request_id="a")))
        await until(lambda: service.stats().running == 1)
        assert not await service.drain(0)
        service.stop()
        with pytest.raises(EngineFailure, match="stopped"):
            await task

    asyncio.run(body())
    assert service.stats().running == 0
