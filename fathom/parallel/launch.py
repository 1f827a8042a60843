"""From the environment that torchrun sets to ranks that have met; and back, without leaving anybody waiting.

    RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT -> Place -> join(...) -> Ranks

    meet      all ranks come to a named point, or it becomes known who does not; their mistakes are told to all
    tell/hear rank 0 gives an order, the others wait for it, for hours if need be (a person may be typing)
    group     the collectives of a split model; None in a single process

Waiting happens in the store, not in a collective: a collective has one time limit for everything and does not say who
was missing. A rank that still makes progress (reads its file, however large) is waited for; one without progress for
`patience` seconds is named. Errors between ranks are LostRank; a person's mistake, whichever rank sees it, is the same
UserError on all of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore

from fathom.parallel.group import CollectiveError, Group
from fathom.parallel.watch import SILENCE, LostRank, Watch, leave
from fathom.runtime import UserError, pick_device

START_SECONDS, STEP_SECONDS = 60.0, 300.0


@dataclass(frozen=True)
class Place:
    """This process among all of them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = ""
    port: int = 0
    hosted: bool = False  # torchrun keeps the store; otherwise rank 0 does

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Place:
        """What torchrun (or a cluster's own starter) set; nothing set is a single process."""
        size = _number(env, "WORLD_SIZE", 1)
        if size < 1:
            raise UserError(f"WORLD_SIZE is {size}; it must be at least 1")
        if size == 1:
            _alone(env)
            return cls(local_rank=_number(env, "LOCAL_RANK", 0))
        rank, port = _number(env, "RANK"), _number(env, "MASTER_PORT")
        if not 0 <= rank < size:
            raise UserError(f"RANK is {rank}, WORLD_SIZE is {size}; ranks are 0 to {size - 1}")
        if not 0 < port < 2**16:
            raise UserError(f"MASTER_PORT is {port}; ports are 1 to {2**16 - 1}")
        if not env.get("MASTER_ADDR"):
            raise UserError(f"WORLD_SIZE is {size}, but MASTER_ADDR is not set; start with torchrun, which sets it")
        hosted = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return cls(rank, size, _number(env, "LOCAL_RANK", rank), env["MASTER_ADDR"], port, hosted)


STARTED = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")  # processes of this job, as cluster starters say


def _alone(env: Mapping[str, str]) -> None:
    """Refuse to be one of several processes that do not know of each other: all of them would do the whole work."""
    for name in STARTED:
        if env.get(name, "").isdecimal() and int(env[name]) > 1 and "WORLD_SIZE" not in env:
            raise UserError(
                f"{name} says that {env[name]} processes were started, but WORLD_SIZE and RANK are not set, so each "
                "would do the whole work; start one torchrun on each host, or set them"
            )


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = env.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        given = f"is {text!r}" if text else "is not set"
        raise UserError(f"{name} {given}, it must be a whole number; start with torchrun, which sets it")
    return int(text)


@dataclass
class Ranks:
    """All processes, seen from one of them."""

    rank: int
    size: int
    device: torch.device
    store: Store
    watch: Watch
    patience: float
    group: Group | None = None
    orders: int = 0

    def meet(self, point: str, problem: str | None = None, patience: float | None = None) -> None:
        """Wait until all ranks are at `point`. If any of them has a problem, all raise it as one UserError."""
        patience = patience or self.patience
        self.store.set(f"{point}/{self.rank}", problem or "")
        waiting = set(range(self.size))
        while waiting := {r for r in waiting if not self.store.check([f"{point}/{r}"])}:
            late = {r for r in waiting if self.watch.still(r) > patience}
            if late:
                names = ("rank " if len(late) == 1 else "ranks ") + ", ".join(map(str, sorted(late)))
                raise self.watch.verdict(
                    late,
                    f"{names} of {self.size} did not come to the {point} within {patience:.0f} s; "
                    "see whether it was started, with the same MASTER_ADDR and MASTER_PORT, and what it printed",
                )
            time.sleep(0.02)
        said = {r: self.store.get(f"{point}/{r}").decode() for r in range(self.size)}
        problems = {r: text for r, text in said.items() if text}
        if len(problems) == self.size and len(set(problems.values())) == 1:
            raise UserError(problems[0])
        if problems:
            raise UserError("; ".join(f"rank {r}: {text}" for r, text in problems.items()))

    def prepare(self, point: str, work: Callable[[], Any]) -> Any:
        """Do `work` on every rank, then meet: a UserError of one is raised by all, other errors end this rank alone."""
        result, problem = None, None
        try:
            result = work()
        except UserError as error:
            problem = str(error)
        self.meet(point, problem)
        return result

    def tell(self, order: Any) -> None:
        """Rank 0: give the next order (anything JSON can say) to the others."""
        if self.size > 1:
            self.store.set(f"order/{self.orders}", json.dumps(order))
            if self.orders:  # all have read the one before: they took part in carrying it out
                self.store.delete_key(f"order/{self.orders - 1}")
        self.orders += 1

    def hear(self) -> Any:
        """Other ranks: the next order. Waits as long as rank 0 lives (the watch sees to that)."""
        key = f"order/{self.orders}"
        self.orders += 1
        while True:
            with contextlib.suppress(dist.DistStoreError):  # a second without an order
                self.store.wait([key], timedelta(seconds=1))
                return json.loads(self.store.get(key))


@contextlib.contextmanager
def join(
    place: Place,
    device: str = "auto",
    timeout: float | None = None,
    on_lost: Callable[[LostRank], None] = leave,
) -> Iterator[Ranks]:
    """Meet the other ranks. `timeout`: longest wait for another rank; default 60 s to start, 300 s for a step."""
    start, step = timeout or START_SECONDS, timeout or STEP_SECONDS
    hosts_store = place.size > 1 and place.rank == 0 and not place.hosted
    store = _open_store(place, start)
    own = store.clone() if place.size > 1 else store  # type: ignore[attr-defined]  # missing in torch's stub
    watch = Watch(
        own, place.rank, place.size,
        hosts_store=hosts_store, on_lost=on_lost, silence=min(SILENCE, step),
    )  # fmt: skip
    ranks = Ranks(place.rank, place.size, torch.device("cpu"), store, watch, step)
    says, why = "bye", ""
    if place.size > 1:
        watch.start()
    try:
        ranks.meet("start", _claim(place, store), start)
        ranks.device = ranks.prepare("choice of devices", lambda: local_device(device, place.local_rank))
        if place.size > 1:
            ranks.group = _group(ranks)
        yield ranks
    except CollectiveError as error:
        watch.alarm(str(error))
        raise LostRank(f"a step between ranks failed: {error}", speaks=place.rank == 0) from error
    except LostRank:
        raise
    except BaseException as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        says, why = "failed", reason if isinstance(error, UserError) else f"{type(error).__name__}: {reason}"
        raise
    finally:
        if place.size > 1:
            with contextlib.suppress(RuntimeError):  # the store may be gone already
                watch.close(says, why)
            if says == "bye" and dist.is_initialized():
                dist.destroy_process_group()


def _open_store(place: Place, timeout: float) -> Store:
    if place.size == 1:
        return HashStore()
    host = place.rank == 0 and not place.hosted
    where = f"{place.address}:{place.port}"
    try:
        if not host:
            _probe(place, timeout)
        return TCPStore(
            place.address, place.port, place.size, host, timedelta(seconds=timeout),
            wait_for_workers=False, multi_tenant=True,
        )  # fmt: skip
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        if host:
            raise UserError(f"rank 0 cannot listen on {where} ({reason}); choose another MASTER_PORT") from None
        missing = "torchrun's store" if place.hosted else "rank 0"
        raise LostRank(
            f"rank {place.rank} cannot reach {missing} at {where} within {timeout:.0f} s; "
            "is it running, and are MASTER_ADDR and MASTER_PORT the same everywhere?",
            speaks=True,
        ) from None


def _probe(place: Place, timeout: float) -> None:
    """Wait until somebody listens; TCPStore itself would fill the screen with stack traces."""
    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((place.address, place.port), timeout=max(end - time.monotonic(), 0.1)).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def _claim(place: Place, store: Store) -> str | None:
    if store.add(f"claims/{place.rank}", 1) > 1:
        return f"two processes have RANK {place.rank}; each rank must be started once"
    return None


def local_device(name: str, local_rank: int) -> torch.device:
    """The device of the process number `local_rank` of this host: an accelerator of its own, or the CPU for all."""
    device = pick_device(name)
    if device.type == "cpu" or device.index is not None:
        return device
    count = torch.accelerator.device_count()
    if local_rank >= count:
        raise UserError(
            f"this host has {count} {device.type} devices, process {local_rank} of it finds none; start at most "
            f"{count} processes here or give --device cpu"
        )
    torch.accelerator.set_device_index(local_rank)
    return torch.device(device.type, local_rank)


def _group(ranks: Ranks) -> Group:
    on_cpu = ranks.device.type == "cpu"
    try:
        dist.init_process_group(
            "gloo" if on_cpu else dist.get_default_backend_for_device(ranks.device),
            store=PrefixStore("group", ranks.store),
            rank=ranks.rank,
            world_size=ranks.size,
            timeout=timedelta(seconds=ranks.patience),
            device_id=None if on_cpu else ranks.device,
        )
    except RuntimeError as error:
        raise CollectiveError(str(error).strip().splitlines()[0]) from error
    assert dist.group.WORLD is not None
    return Group(ranks.rank, ranks.size, dist.group.WORLD, ranks.device)
