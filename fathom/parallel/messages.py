"""Messages between pipeline ranks: activations one way, gradients the other, both ways at once for dualpipev.

They cannot be mixed up or block each other, on gloo or NCCL, because all ranks agree on ONE order of all messages of a
step, `messages(schedule)`: the order in which the simulated step produces them. A rank starts its sends and receives
strictly in that order: before it sends, it starts every receive that comes earlier. So even where a backend runs a
rank's messages one after the other (NCCL does, on one stream) or a send ends only when it is received, the first
unfinished message of the order has both its ends waiting for nothing else. Messages between two ranks match in order
and need no tags.

A receive that comes right after a send starts together with it (both directions at once); up to `AHEAD` receives are
under way before they are needed, and up to `AHEAD` sends after they are made. What crosses between two stages on one
rank (the fold of dualpipev) is handed over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fathom.parallel.group import CollectiveError, Group, Pending
from fathom.parallel.schedules import Action, Schedule, parts
from fathom.parallel.timeline import simulate

AHEAD = 2  # each holds one buffer of activations


@dataclass(frozen=True)
class Message:
    """What one stage gets from its neighbour for one micro-batch. source and target are ranks."""

    what: Literal["activations", "gradients"]
    stage: int
    micro: int
    source: int
    target: int

    def __str__(self) -> str:
        return f"{self.what} of micro-batch {self.micro} for stage {self.stage}"


def takes(schedule: Schedule, action: Action) -> Message | None:
    """The message that an action waits for, if any; within a rank, source and target are the same."""
    stage, home = action.stage, schedule.home
    if action.kind == "F" and stage > 0:
        return Message("activations", stage, action.micro, home(stage - 1), home(stage))
    if action.kind in "BI" and stage < schedule.stages - 1:
        return Message("gradients", stage, action.micro, home(stage + 1), home(stage))
    return None


def gives(schedule: Schedule, action: Action) -> Message | None:
    """The message that an action produces, if any."""
    stage, home = action.stage, schedule.home
    if action.kind == "F" and stage < schedule.stages - 1:
        return Message("activations", stage + 1, action.micro, home(stage), home(stage + 1))
    if action.kind in "BI" and stage > 0:
        return Message("gradients", stage - 1, action.micro, home(stage), home(stage - 1))
    return None


def messages(schedule: Schedule) -> list[Message]:
    """All messages between ranks in the order that every rank keeps to."""
    spans = [(span.end, rank, span) for rank, spans in enumerate(simulate(schedule).spans) for span in spans]
    spans.sort(key=lambda item: item[:2])
    made = [gives(schedule, action) for _, _, span in spans for action in parts(span.step)]
    return [message for message in made if message is not None and message.source != message.target]


class _Once:
    """Waits once: a second wait on gloo never ends, and where a backend joins a send and a receive they share this."""

    def __init__(self, pending: Pending) -> None:
        self._pending: Pending | None = pending

    @property
    def over(self) -> bool:
        """Whether waiting would return at once."""
        return self._pending is None or all(work.is_completed() for work in self._pending.works)

    def wait(self) -> None:
        """Until it is over."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.wait()


def _halves(pending: Pending) -> tuple[_Once, _Once]:
    """Of a send that started with a receive. gloo gives one work for each, NCCL one for both."""
    if len(pending.works) == 2:
        send, receive = (_Once(Pending((work,))) for work in pending.works)
        return send, receive
    both = _Once(pending)
    return both, both


class Post:
    """Sends and receives of one rank, in the order of `messages`."""

    def __init__(self, schedule: Schedule, group: Group, shapes: Sequence[Sequence[int]], dtype: torch.dtype) -> None:
        self.group, self.shapes, self.dtype = group, shapes, dtype
        self.order = [m for m in messages(schedule) if group.rank in (m.source, m.target)]
        self.next = 0
        self.here: dict[Message, Tensor] = {}  # from a stage of this very rank
        self.coming: dict[Message, tuple[_Once, Tensor]] = {}
        self.leaving: deque[tuple[Message, _Once, Tensor]] = deque()
        self.bytes_sent = 0

    def send(self, message: Message, tensor: Tensor) -> None:
        """Start a send; returns at once."""
        shape = tuple(self.shapes[message.micro])
        assert tuple(tensor.shape) == shape and tensor.dtype == self.dtype, (
            f"{message}: {tuple(tensor.shape)} {tensor.dtype} was computed, {shape} {self.dtype} was announced"
        )
        if message.source == message.target:
            self.here[message] = tensor
            return
        self._receive_until(message)
        self.next += 1
        self.bytes_sent += tensor.numel() * tensor.element_size()
        tensor = tensor.contiguous()
        with_it = self._upcoming()
        buffers = [] if with_it is None else [(self._buffer(with_it), with_it.source)]
        with _about(message, message.target):
            pending = self.group.exchange([(tensor, message.target)], buffers)
        sent = _Once(pending)
        if with_it is not None:
            sent, received = _halves(pending)
            self.coming[with_it] = received, buffers[0][0]
            self.next += 1
        self.leaving.append((message, sent, tensor))
        while self.leaving and (self.leaving[0][1].over or len(self.leaving) > AHEAD):
            self._left()

    def receive(self, message: Message) -> Tensor:
        """Wait for a message."""
        if message.source == message.target:
            return self.here.pop(message)
        if message not in self.coming:
            self._receive_until(message)
            self._start(message)
        pending, buffer = self.coming.pop(message)
        with _about(message, message.source):
            pending.wait()
        return buffer

    def ahead(self) -> None:
        """Start receives that will be needed soon."""
        while (message := self._upcoming()) is not None:
            self._start(message)

    def finish(self) -> None:
        """Wait until everything has left."""
        assert self.next == len(self.order) and not self.coming and not self.here, "messages were left over"
        while self.leaving:
            self._left()

    def _left(self) -> None:
        """The oldest send is over, and its tensor can go."""
        message, pending, _ = self.leaving.popleft()
        with _about(message, message.target):
            pending.wait()

    def _upcoming(self) -> Message | None:
        message = self.order[self.next] if self.next < len(self.order) else None
        wanted = message is not None and message.target == self.group.rank and len(self.coming) < AHEAD
        return message if wanted else None

    def _receive_until(self, message: Message) -> None:
        while (earlier := self.order[self.next]) != message:
            assert earlier.target == self.group.rank, f"{message} would overtake {earlier}"
            self._start(earlier)

    def _start(self, message: Message) -> None:
        buffer = self._buffer(message)
        with _about(message, message.source):
            self.coming[message] = _Once(self.group.exchange([], [(buffer, message.source)])), buffer
        self.next += 1

    def _buffer(self, message: Message) -> Tensor:
        return torch.empty(tuple(self.shapes[message.micro]), dtype=self.dtype, device=self.group.device)


@contextmanager
def _about(message: Message, other: int) -> Iterator[None]:
    """Errors inside name the message and the rank at its other end."""
    try:
        yield
    except CollectiveError as error:
        verb = "take" if message.target == other else "send"
        raise CollectiveError(f"pipeline rank {other} did not {verb} the {message}: {error}") from error
