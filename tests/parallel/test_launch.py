"""Meeting: the environment, meeting points, mistakes told to all, orders. Ranks are threads around one store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from fathom.parallel.launch import Place, Ranks, join, local_device
from fathom.parallel.watch import LostRank, Watch
from fathom.runtime import UserError

ENV = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "host7", "MASTER_PORT": "29500"}


def together(size: int, body: Callable[[Ranks], Any], patience: float = 20.0, only: int | None = None) -> list[Any]:
    """Run `body` as each rank; results, or the exceptions, by rank."""
    store = HashStore()

    def one(rank: int) -> Any:
        watch = Watch(store, rank, size, on_lost=lambda error: None, interval=0.02)
        watch.start()
        try:
            return body(Ranks(rank, size, torch.device("cpu"), store, watch, patience))
        except Exception as error:
            return error
        finally:
            watch.close()

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size if only is None else only)))


def test_environment() -> None:
    assert Place.from_env({}) == Place()
    assert Place.from_env({"WORLD_SIZE": "1", "RANK": "0"}).size == 1
    assert Place.from_env(ENV) == Place(1, 4, 1, "host7", 29500, hosted=False)
    assert Place.from_env(ENV | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).hosted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": "4"}, "RANK is 4, WORLD_SIZE is 4; ranks are 0 to 3"),
        ({"RANK": "-1"}, "RANK is '-1', it must be a whole number"),
        ({"RANK": ""}, "RANK is not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": ""}, "MASTER_PORT is not set"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT is 70000"),
    ],
)
def test_bad_environment(change: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Place.from_env(ENV | change)


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_one_of_several_that_do_not_know_of_each_other(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} says that 4 processes were started"):
        Place.from_env({name: "4"})
    assert Place.from_env({name: "1"}) == Place() and Place.from_env(ENV | {name: "4"}).size == 4


def test_all_meet() -> None:
    order: list[str] = []

    def body(ranks: Ranks) -> None:
        time.sleep(0.1 * ranks.rank)
        order.append("before")
        ranks.meet("point")
        order.append("after")

    assert together(3, body) == [None] * 3
    assert order == ["before"] * 3 + ["after"] * 3


def test_a_missing_rank_is_named() -> None:
    [error] = together(2, lambda ranks: ranks.meet("start"), patience=0.4, only=1)
    assert isinstance(error, LostRank) and error.speaks
    assert "rank 1 of 2 did not come to the start within" in str(error)


def test_several_missing_ranks_are_named_by_all_that_came() -> None:
    errors = together(5, lambda ranks: ranks.meet("start"), patience=0.4, only=2)
    assert all("ranks 2, 3, 4 of 5" in str(error) for error in errors)
    assert sum(error.speaks for error in errors) == 1


def test_a_slow_rank_that_makes_progress_is_waited_for() -> None:
    def body(ranks: Ranks) -> str:
        if ranks.rank == 1:
            for _ in range(12):
                time.sleep(0.15)
                ranks.watch.tick()
        ranks.meet("loaded")
        return "met"

    assert together(2, body, patience=1.0) == ["met", "met"]


def test_a_mistake_of_one_rank_reaches_all() -> None:
    def work(rank: int) -> int:
        if rank == 1:
            raise UserError("file B is missing; copy it")
        return rank

    errors = together(3, lambda ranks: ranks.prepare("loaded", lambda: work(ranks.rank)))
    assert [(type(e), str(e)) for e in errors] == [(UserError, "rank 1: file B is missing; copy it")] * 3


def test_the_same_mistake_on_all_ranks_is_said_once() -> None:
    def work() -> None:
        raise UserError("no such folder")

    errors = together(2, lambda ranks: ranks.prepare("loaded", work))
    assert [str(e) for e in errors] == ["no such folder"] * 2


def test_orders_come_in_order_and_waiting_has_no_limit() -> None:
    said = [{"ids": [1, 2]}, {"ids": []}, None]

    def body(ranks: Ranks) -> list[Any]:
        heard: list[Any] = []
        for number, order in enumerate(said):
            if ranks.rank == 0:
                time.sleep(1.2 if number == 1 else 0)  # longer than one round of waiting, and than the patience
                ranks.tell(order)
            else:
                heard.append(ranks.hear())
            ranks.meet(f"step {number}", patience=30)
        return heard

    assert together(3, body, patience=0.5)[1:] == [said, said]


def test_one_process_needs_no_partner() -> None:
    before = threading.active_count()
    with join(Place()) as ranks:
        assert ranks.group is None and (ranks.rank, ranks.size) == (0, 1)
        ranks.tell({"ids": []})
        assert ranks.prepare("loaded", lambda: 5) == 5
        assert threading.active_count() == before
        with pytest.raises(UserError, match=r"^gone$"):
            ranks.meet("other", "gone")


def test_two_processes_with_one_rank() -> None:
    from fathom.parallel.launch import _claim

    store = HashStore()
    assert _claim(Place(1, 2), store) is None
    assert "two processes have RANK 1" in (_claim(Place(1, 2), store) or "")


def test_nobody_listens() -> None:
    from parallel.distributed import free_port

    began = time.monotonic()
    place = Place(1, 2, 1, "127.0.0.1", free_port())
    message = r"rank 1 cannot reach rank 0 at 127.0.0.1:\d+ within 1 s"
    with pytest.raises(LostRank, match=message) as caught, join(place, timeout=1):
        pass
    assert caught.value.speaks and time.monotonic() - began < 10


def test_more_processes_than_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fathom.parallel.launch.pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: None)
    assert local_device("auto", 1) == torch.device("cuda", 1)
    with pytest.raises(UserError, match="this host has 2 cuda devices, process 2 of it finds none"):
        local_device("auto", 2)


def test_processes_share_the_cpu() -> None:
    assert local_device("cpu", 5) == torch.device("cpu")
