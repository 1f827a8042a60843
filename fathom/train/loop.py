"""The training loop: what pretraining, extension and SFT share, on one process or many.

    for step in range(done, steps):
        batch = data.batch(step)                      # the whole batch of the step: a pure function of the step
        this rank's rows, micro-batch by micro-batch -> losses, gradients        (parts.py)
        sums over ranks: losses, expert loads, gradients (each rank keeps a slice), gradient norm
        clip, AdamW or Muon on the slice, weights to everybody                   (parallel/zero.py)
        router bias step                              # it sees the load of the whole batch
        log, evaluate, checkpoint

A step is a function of the config and of what a checkpoint holds; nothing draws random numbers. So a resumed run equals
an uninterrupted one bit for bit on the same layout, and to rounding on another.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from fathom.checkpoint.store import Store
from fathom.model.cost import training_flops_per_token
from fathom.model.transformer import DeepseekV3
from fathom.models.resolve import resolve
from fathom.parallel.group import CollectiveError
from fathom.parallel.mesh import Mesh, single
from fathom.parallel.piece import Piece
from fathom.runtime import UserError, keep_freed_memory, pick_device, read_json, write_json
from fathom.text.dataset import IGNORE, Batch
from fathom.text.ramp import Ramp
from fathom.train import base
from fathom.train.balance import dead_experts, max_over_mean, update_bias
from fathom.train.config import ENDING, TrainConfig, comparable, differences
from fathom.train.evaluate import Nats
from fathom.train.objective import Objective, Weights, whole_loss
from fathom.train.parts import Parts
from fathom.train.schedules import Now, at, contradiction, ema_decay
from fathom.train.spikes import SpikeGuard
from fathom.train.watch import Watch, matmul_peak


class Data(Protocol):
    """Anything that can make the batch of any step."""

    def batch(self, step: int) -> Batch:
        """The whole batch of optimizer step `step`."""


Evaluate = Callable[[Nats], dict[str, float]]


class Trainer:
    """One run in one folder. `train()` starts it or continues it."""

    def __init__(
        self,
        config: TrainConfig,
        model: DeepseekV3,
        data: Data,
        evaluate: Evaluate | None = None,
        unit: str = "bits/byte",  # of what `evaluate` returns
        mesh: Mesh | None = None,
        tick: Callable[[], None] = lambda: None,  # called after every step: a sign of life to the other ranks
        template: str = "",  # chat format that is trained on, if any: exports bring it
        objective: Objective = whole_loss,
    ) -> None:
        positions = model.config.max_position_embeddings
        for name in ("sequence_length", "long_length"):
            if (length := getattr(config.data, name)) > positions:
                raise UserError(f"data.{name} {length} is above the model's max_position_embeddings {positions}")
        self.config, self.model, self.data, self.evaluate, self.tick = config, model, data, evaluate, tick
        self.template = template
        weight = model.embed_tokens.weight
        self.mesh = mesh or single(pick_device() if weight.is_meta else weight.device)
        self.device = self.mesh.world.device
        self.ramp = ramp_of(config, self.mesh.data.size)
        self.parts = Parts(config, model, self.mesh, objective)
        whole = config.run.train == ["all"]
        self.base = {} if whole else base.note(resolve(config.run.init_from))  # what checkpoints leave out
        self.zero = self.parts.zero
        self.guard = SpikeGuard(config.run.spike_factor)
        self.step_done, self.tokens = 0, 0
        self.out = Path(config.run.out)
        self.store = Store(
            self.out / "checkpoints", self.mesh.world, keep=config.run.keep_checkpoints, best="heldout",
            patience=config.parallel.timeout_s,
        )  # fmt: skip
        total = self.ramp.first_row(config.run.steps) * config.data.sequence_length
        self.watch = Watch(
            self.out, config.run.steps, total_tokens=total, unit=unit, tensorboard=config.run.tensorboard,
            writes=self.mesh.rank == 0,
        )  # fmt: skip
        self.peak = 0.0  # FLOP/s of a matmul here; measured when the run starts
        self._asked = False  # this process got a signal
        self._stop = False  # all ranks have agreed to leave after this step

    # ---- the run ---------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Run to `run.steps`, resuming from the newest checkpoint; SIGTERM and Ctrl-C save and leave."""
        keep_freed_memory()
        torch.set_flush_denormal(True)
        self._claim_folder()
        self._measure_peak()
        self.model.train()
        try:
            with self._graceful_stop():
                while self.step_done < self.config.run.steps and not self._stop:
                    self.step()
                # a signal that came after the last step had been agreed upon
                asked = torch.tensor([float(self._asked)], device=self.device)
                self._stop = self._stop or float(self.mesh.world.sum(asked)) > 0
            if self._stop:
                self.save(wait=True)
                raise KeyboardInterrupt
            self.store.wait()
        except CollectiveError:
            raise  # another rank is gone: its part of a checkpoint would be waited for in vain
        except BaseException:
            with contextlib.suppress(UserError):  # what is being written is worth having, whatever ended the run
                self.store.wait()
            raise
        finally:
            self.watch.close()

    def step(self) -> dict[str, Any]:
        """One optimizer step with everything that belongs to it; returns its log record."""
        c, started, index = self.config, time.perf_counter(), self.step_done
        now = at(index, c.run.steps, self.ramp, c.optim, c.balance)
        batch = self.data.batch(index)
        record = self._update(batch, now)
        seconds = time.perf_counter() - started
        length = batch.tokens.shape[1]
        self.step_done, self.tokens = index + 1, self.tokens + batch.tokens.numel()
        flops = training_flops_per_token(self.model.config, length, mtp=now.mtp_lambda > 0) * batch.tokens.numel()
        record = {"step": index + 1, "tokens": self.tokens} | record
        record["tokens_per_second"] = batch.tokens.numel() / seconds
        if self.peak and not self.base:  # what a frozen part saves is not counted
            record["flops_share"] = round(self._share(flops / seconds / self.mesh.layout.world), 4)
        self._after_step(record)
        self.tick()
        return record

    def _share(self, rate: float) -> float:
        """FLOP/s of a rank over the matmul peak. Above 1 the peak was measured on a busy machine: once more."""
        if rate > self.peak and self.mesh.rank == 0:
            self._measure_peak()
        return rate / self.peak

    def _measure_peak(self) -> None:
        dtype = torch.float32 if self.parts.how.carry_bf16 else torch.bfloat16
        self.peak = max(self.peak, matmul_peak(self.device, dtype))

    def _update(self, batch: Batch, now: Now) -> dict[str, Any]:
        """Gradients, optimizer, router biases."""
        c, b = self.config, self.config.balance
        trained = max(int((batch.labels != IGNORE).sum()), 1)
        aux = b.aux_alpha if b.method == "aux" else 0.0
        weights = Weights(trained, batch.tokens.shape[0], now.mtp_lambda, b.alpha, aux)
        totals = self.parts.forward_backward(batch, weights)
        # one message for everything that every rank must know; a rank counts what it computed
        asked = torch.tensor([float(self._asked)], device=self.device)
        numbers = torch.cat((totals.main.reshape(1), totals.mtp, asked))
        main, *mtp, stop = self.mesh.world.sum(numbers.double()).tolist()
        loads = self.mesh.world.sum(totals.loads)
        self._stop = stop > 0
        self.zero.reduce()
        norm = math.sqrt(float(self.mesh.world.sum(self.zero.square_sum())))
        skipped = self.guard.is_spike(main, norm)
        logits: dict[str, float] = {}
        if not math.isfinite(norm) and not skipped:
            raise UserError(
                f"gradient norm is {norm} at step {self.step_done}; start a new run.out with a lower optim.peak_lr, or "
                "set run.spike_factor to skip such steps"
            )
        if skipped:
            self.zero.zero_grad()
            self.watch.note(f"step {self.step_done + 1} skipped: loss {main:.4f}, gradient norm {norm:.4g} are a spike")
        else:
            if c.optim.ema_decay:
                self.zero.ema = ema_decay(c.optim.ema_decay, self.zero.steps)
            rows, logits = self._clip_logits()
            self.zero.step(lr=now.lr, scale=clip_scale(c.optim.clip_norm, norm), rows=rows)
        gamma = now.gamma if b.method == "bias" and not skipped else 0.0
        for number, gate in self.parts.balanced.items():
            update_bias(gate, loads[number], gamma)
        record = {
            "loss": main,
            "mtp_loss": mtp if now.mtp_lambda else [],  # without a weight the modules do not run
            "lr": now.lr,
            "grad_norm": norm,
            "load_max_over_mean": [round(max_over_mean(load), 3) for load in loads],
            "dead_experts": [dead_experts(load) for load in loads],
            "rows": batch.tokens.shape[0],
            "gamma": gamma,
            "mtp_lambda": now.mtp_lambda,
            "loads": loads,
        }
        return record | logits | ({"skipped": True} if skipped else {})

    def _clip_logits(self) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Rows of attention's weights that must shrink, and for the log the largest logit of the step."""
        if self.parts.clip is None:
            return {}, {}
        rows, own = self.parts.clip.rows()
        top = float(self.mesh.world.largest(torch.tensor([own], device=self.device)))
        return rows, {"max_logit": round(top, 3)} if math.isfinite(top) else {}

    # ---- around the step -------------------------------------------------------------------------------------------

    def _after_step(self, record: dict[str, Any]) -> None:
        run, step, loads = self.config.run, record["step"], record.pop("loads")
        last = step == run.steps
        metric = None
        if self.evaluate is not None and (step % run.eval_every == 0 or last):
            self.model.eval()
            with self.zero.ema_weights() if self.zero.ema else contextlib.nullcontext():
                record["heldout"] = {k: round(v, 4) for k, v in self.evaluate(self.parts.nats).items()}
            self.model.train()
            metric = record["heldout"]["mean"]
            mean = loads.double().mean(1, keepdim=True).clamp(min=1e-9)
            record["load"] = [[round(x, 3) for x in row] for row in (loads / mean).tolist()]
        if step % run.log_every == 0 or last or "heldout" in record or "skipped" in record:
            self.watch.write(record)
        if step % run.checkpoint_every == 0 or last:
            self.save(metric=metric)

    def pieces(self, *, loading: bool = False) -> list[Piece]:
        """What a checkpoint holds of this rank: slices of weights, moments and average, and router biases."""
        out = self.zero.pieces(loading=loading)
        if loading or self.mesh.data.rank == 0:
            for number, gate in self.parts.balanced.items():
                if gate.config.has_router_bias:
                    bias = gate.e_score_correction_bias
                    out.append(Piece(f"router_bias.{number}", bias.shape, 0, bias.view(-1)))
        return out

    def save(self, *, metric: float | None = None, wait: bool = False) -> None:
        """Begin to write a checkpoint of this moment."""
        extra = {
            "tokens": self.tokens, "updates": self.zero.steps, "guard": self.guard.state_dict(),
            "config": self.config.to_dict(), "model": self.model.config.to_dict(), "template": self.template,
            **({"base": self.base} if self.base else {}),
        }  # fmt: skip
        self.store.save(self.step_done, self.pieces(), extra, metric=metric, wait=wait)

    def resume(self, step: int) -> None:
        """Go on from checkpoint `step`, whatever layout wrote it."""
        extra = self.store.load(step, self.pieces(loading=True))
        if self.base:
            base.require(extra["base"], self.base)
        self.zero.gather()
        self.zero.steps, self.step_done, self.tokens = int(extra["updates"]), step, int(extra["tokens"])
        self.guard.load_state_dict(extra["guard"])

    def _claim_folder(self) -> None:
        """Resume when the folder holds this very run; refuse when it holds another."""
        saved, found = self.out / "config.json", self.store.latest()
        if saved.exists():
            try:
                theirs = TrainConfig.from_dict(read_json(saved))
            except UserError as error:
                raise UserError(
                    f"{saved} is not the config of a run ({error}); choose another run.out or remove it"
                ) from None
            self._check_same(theirs, found or 0)
        if self.mesh.rank == 0:
            write_json(saved, self.config.to_dict())
        if found is not None:
            self.resume(found)
            self.watch.note(f"resumed from {self.out / 'checkpoints'} at step {found}")
        self.watch.resume(self.step_done)

    def _check_same(self, theirs: TrainConfig, done: int) -> None:
        """UserError unless the run of this folder may go on after `done` steps as this config says."""
        changed = differences(comparable(theirs.to_dict()), comparable(self.config.to_dict()))
        if other := [key for key in changed if key not in ENDING]:
            raise UserError(
                f"{self.out} holds a run with another config (different: {', '.join(other)}); "
                "choose another run.out or remove it"
            )
        if not changed:
            return
        if self.config.run.steps < done:
            raise UserError(
                f"run.steps is {self.config.run.steps}, but {self.out} has taken {done} steps; give at least as many, "
                "or choose another run.out"
            )
        if why := contradiction(theirs, self.config, done, self.ramp):
            raise UserError(
                f"{self.out} has taken {done} steps that are not those of this config ({', '.join(changed)}): {why}; "
                "choose values that leave them as they were, or another run.out"
            )

    @contextlib.contextmanager
    def _graceful_stop(self) -> Iterator[None]:
        def stop(number: int, frame: FrameType | None) -> None:
            self._asked = True  # what the other ranks do not know yet must not end the loop here

        try:
            old = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread: whoever runs us handles signals
            yield
            return
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def clip_scale(limit: float, norm: float) -> float:
    """What gradients of this norm are multiplied by; a limit of 0 clips nothing."""
    return min(1.0, limit / (norm + 1e-6)) if limit else 1.0


def ramp_of(config: TrainConfig, data_ranks: int) -> Ramp:
    """Rows of every step; UserError when they do not divide over the ranks.

    The rows grow in steps that depend on the recipe alone: on another layout a run sees the same rows.
    """
    d = config.data
    if d.batch_rows % (d.micro_rows * data_ranks):
        raise UserError(
            f"data.batch_rows {d.batch_rows} is not a multiple of data.micro_rows {d.micro_rows} x {data_ranks} data "
            "ranks; change one of them"
        )
    multiple = d.ramp_rows_step or math.gcd(d.ramp_from_rows, d.batch_rows)
    if multiple % (d.micro_rows * data_ranks):
        raise UserError(
            f"the batch grows by {multiple} rows at a time, which is no multiple of data.micro_rows {d.micro_rows} x "
            f"{data_ranks} data ranks; change data.ramp_rows_step or one of them"
        )
    return Ramp(d.batch_rows, start=d.ramp_from_rows, over=d.ramp_tokens, length=d.sequence_length, multiple=multiple)
