"""Everything that changes while a run goes on, as pure functions: nothing here remembers a step (report section 4.2).

    learning rate   linear warm-up over `warmup_steps`, constant, cosine to `final_lr` over `decay_fraction` of the run
                    (or from step `decay_start` on), then the constants of `tail`
                                                            |  V3: 2.2e-4 to 10T tokens, cosine to 2.2e-5 over 4.3T,
                                                            |      2.2e-5 for 333B, 7.3e-6 for the last 167B
    gamma           step of the router bias, 0 at the end   |  V3: 0.001, 0 for the last 500B
    mtp_lambda      weight of the MTP loss                  |  V3: 0.3 to 10T, then 0.1
    rows            sequences per step (text/ramp.py)       |  V3: 3072 -> 15360 over the first 469B tokens

The report counts in tokens, not in steps. So `done` and `total` are positions in units of FULL batches: rows seen so
far divided by the rows of a full batch. Without a ramp that is exactly the step. Only the warm-up counts plain steps.

A run whose length is not known beforehand is planned too long, without a decay, and gets `decay_start` and its true
number of steps when it goes on for the last time ("WSD", arXiv 2404.06395). Nothing here remembers, so it is then the
run that was planned so from the start, bit for bit, if all steps so far would have been the same: `contradiction` asks
that of every single one, of all schedules.

Not published, chosen here: the shape of the batch ramp (text/ramp.py) and the EMA's first steps (a shorter memory, so
that the average is not made of the random start).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from fathom.runtime import UserError
from fathom.text.ramp import Ramp
from fathom.train.config import BalanceConfig, OptimConfig, TrainConfig


def learning_rate(
    step: int, done: float, total: float, *, peak_lr: float, final_lr: float, warmup_steps: int,
    decay_fraction: float, decay_start: float = 0.0, tail: Sequence[Sequence[float]] = (),
) -> float:  # fmt: skip
    """Learning rate of the step that starts at `done` of `total`. `tail`: (fraction of the run, rate), in order.

    decay_start: position where the decay begins; 0: `decay_fraction` of the run before the tail.
    """
    if step < warmup_steps:
        return peak_lr * (step + 1) / warmup_steps
    tail_fraction = sum(fraction for fraction, _ in tail)
    decay_start = decay_start or total * (1 - tail_fraction - decay_fraction)
    decay_end = total * (1 - tail_fraction)
    if done < decay_start:
        return peak_lr
    if done < decay_end or not tail:
        part = min((done - decay_start) / max(decay_end - decay_start, 1), 1.0)
        return final_lr + (peak_lr - final_lr) * 0.5 * (1 + math.cos(math.pi * part))
    end = decay_end
    for fraction, rate in tail:
        end += total * fraction
        if done < end:
            return rate
    return tail[-1][1]


def check_tail(tail: Sequence[Sequence[float]], decay_fraction: float) -> None:
    """Refuse a tail that is no list of [fraction, rate] pairs or that leaves no room for the rest of the run."""
    for part in tail:
        pair = part if isinstance(part, list) else []
        numbers = [x for x in pair if isinstance(x, int | float) and not isinstance(x, bool)]
        if len(pair) != 2 or len(numbers) != 2 or not 0 < part[0] <= 1 or not 0 <= part[1] < math.inf:
            raise UserError(f"optim.tail has {part!r}; each part must be [fraction of the run, learning rate]")
    used = sum(fraction for fraction, _ in tail) + decay_fraction
    if used > 1 + 1e-9:
        raise UserError(f"optim.tail and optim.decay_fraction take {used:.4f} of the run; together at most 1")


def gamma(done: float, total: float, *, gamma: float, gamma_stop_fraction: float) -> float:
    """Step of the router bias; zero from `gamma_stop_fraction` of the run on."""
    return gamma if done < gamma_stop_fraction * total else 0.0


def mtp_lambda(
    done: float, total: float, *, mtp_lambda: float, mtp_lambda_late: float, mtp_late_fraction: float
) -> float:
    """Weight of the MTP loss."""
    return mtp_lambda_late if done >= mtp_late_fraction * total else mtp_lambda


def ema_decay(decay: float, step: int) -> float:
    """Decay of the weights' average at the update after `step` steps: (1 + t) / (10 + t) until `decay` is lower."""
    return min(decay, (1 + step) / (10 + step))


def position(ramp: Ramp, step: int) -> float:
    """Full batches before `step`: `done` at a step, `total` at the number of steps."""
    return ramp.first_row(step) / ramp.end


def steps_for(ramp: Ramp, rows: int) -> int:
    """The fewest steps that take at least `rows` rows."""
    low, high = 0, max(ramp.steps, 1)
    while ramp.first_row(high) < rows:
        low, high = high, 2 * high
    return bisect.bisect_left(range(high + 1), rows, lo=low, key=ramp.first_row)


@dataclass(frozen=True)
class Now:
    """What holds for one step."""

    rows: int
    lr: float
    gamma: float
    mtp_lambda: float


def at(step: int, steps: int, ramp: Ramp, optim: OptimConfig, balance: BalanceConfig) -> Now:
    """Every schedule at step `step` (from 0) of a run of `steps`."""
    done, total = position(ramp, step), position(ramp, steps)
    lr = learning_rate(
        step, done, total, peak_lr=optim.peak_lr, final_lr=optim.final_lr, warmup_steps=optim.warmup_steps,
        decay_fraction=optim.decay_fraction, decay_start=position(ramp, optim.decay_start), tail=optim.tail,
    )  # fmt: skip
    return Now(
        ramp.rows(step),
        lr,
        gamma(done, total, gamma=balance.gamma, gamma_stop_fraction=balance.gamma_stop_fraction),
        mtp_lambda(
            done, total, mtp_lambda=balance.mtp_lambda, mtp_lambda_late=balance.mtp_lambda_late,
            mtp_late_fraction=balance.mtp_late_fraction,
        ),
    )  # fmt: skip


def long_start(config: TrainConfig) -> int:
    """First step of pretraining's long rows; without them, the end of the run."""
    d, steps = config.data, config.run.steps
    return round(steps * (1 - d.long_fraction)) if d.long_length else steps


def contradiction(planned: TrainConfig, now: TrainConfig, done: int, ramp: Ramp) -> str:
    """How the first of the `done` steps of a run would have been another one under the config `now`; else empty."""
    for step in range(done):
        old, new = (at(step, c.run.steps, ramp, c.optim, c.balance) for c in (planned, now))
        for name, key in (("lr", "learning rate"), ("gamma", "gamma"), ("mtp_lambda", "mtp_lambda")):
            if getattr(old, name) != getattr(new, name):
                return f"step {step + 1} had {key} {getattr(old, name):.6g} and would have {getattr(new, name):.6g}"
        if now.data.long_length and (step >= long_start(planned)) != (step >= long_start(now)):
            return f"step {step + 1} would have rows of another length"
    return ""
