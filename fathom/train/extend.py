"""`fathom train extend RECIPE`: a longer context, as the report's section 4.3: YaRN, then phases of longer rows.

    run.init_from, context c, no YaRN -> YaRN with factor s (model/context.py), context s c
    for each of extend.phases [row length, rows, steps], the report's 32K x 1920 and 128K x 480, 1,000 steps each:
        OUT/phase-N   a run of its own: fresh optimizer, resumable, from the weights of the phase before
                      (YaRN is the same in all phases)
        OUT/phase-N/export, its config with rope_scaling and max_position_embeddings s c
    OUT/lengths.json, lengths.png: held-out bits per byte by context length, before and after each phase

Rows are documents packed without a mask, as in pretraining, and a share of made-up long documents (ours, see
text/long_rows.py): the report has long documents in its corpus, we have not. Learning rate and balancing are the
recipe's; the report keeps pretraining's last learning rate, 7.3e-6, constant.

Not published, chosen here: that the optimizer starts anew in each phase.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fathom.checkpoint.reader import read_config
from fathom.config import ModelConfig
from fathom.model.context import extended, set_config
from fathom.models.resolve import resolve
from fathom.parallel.mesh import Mesh
from fathom.runtime import UserError, read_json, write_json
from fathom.text.dataset import Batch
from fathom.text.long_rows import LongRows
from fathom.text.mixture import Mixture
from fathom.text.prefetch import Prefetched
from fathom.train.config import TrainConfig, comparable, differences
from fathom.train.epochs import check_epochs
from fathom.train.evaluate import Nats
from fathom.train.export import export
from fathom.train.lengths import by_length, draw_lengths, halvings
from fathom.train.limits import DISTILL, refuse
from fathom.train.loop import Trainer, ramp_of
from fathom.train.parts import check_rows
from fathom.train.pretrain import open_tokenizer, start_model, text_rows, token_stream

AS_TRAINED, YARN_ALONE = "as trained", "YaRN, not trained"


def extend(config: TrainConfig, mesh: Mesh | None = None, tick: Callable[[], None] = lambda: None) -> Path:
    """Run all phases (or go on where they stopped); returns the folder of the last phase's checkpoint."""
    check(config)
    plan = config.extend
    out = Path(config.run.out)
    trained = read_config(resolve(config.run.init_from))
    target = extended(trained, plan.factor)
    if plan.phases[-1][0] > target.max_position_embeddings:
        raise UserError(
            f"extend.phases end with rows of {plan.phases[-1][0]} tokens, but extend.factor {plan.factor:g} x the "
            f"trained context {trained.max_position_embeddings} is {target.max_position_embeddings}; raise the factor"
        )
    for number in range(1, len(plan.phases) + 1):  # no phase that these ranks cannot share, before any is trained
        phase, ranks = phase_config(config, number, Path(config.run.init_from)), mesh.data.size if mesh else 1
        check_rows(phase, ramp_of(phase, ranks).rows(0), ranks)
    lengths = halvings(trained.max_position_embeddings, plan.phases[-1][0])
    start = Path(config.run.init_from)
    for number in range(1, len(plan.phases) + 1):
        phase = phase_config(config, number, start)
        start = Path(phase.run.out) / "export"
        if not finished(phase, start):
            run_phase(phase, target, out, lengths, mesh, tick)
        if mesh is None or mesh.rank == 0:
            record(out, {f"phase {number}": last_evaluation(Path(phase.run.out))})
    return start


def check(config: TrainConfig) -> None:
    """What an extension needs and what it does not take."""
    phases = config.extend.phases
    if not phases:
        raise UserError("extend.phases is empty; list [row length, rows, steps] of each phase and set extend.factor")
    for phase in phases:
        parts = phase if isinstance(phase, list) else []
        whole = [x for x in parts if isinstance(x, int) and not isinstance(x, bool) and x > 0]
        if len(parts) != 3 or len(whole) != 3:
            raise UserError(f"extend.phases has {phase!r}; each phase must be [row length, rows per step, steps]")
        if phase[1] % config.data.micro_rows:
            raise UserError(
                f"extend.phases: {phase[1]} rows are not a multiple of data.micro_rows {config.data.micro_rows}"
            )
    lengths = [phase[0] for phase in phases]
    if lengths != sorted(set(lengths)):
        raise UserError(f"extend.phases have rows of {lengths} tokens; each phase must have longer rows than before")
    if not config.run.init_from:
        raise UserError("run.init_from is empty; an extension starts from a pretrained checkpoint")
    rows = ("data.batch_rows", "data.sequence_length", "data.long_length", "data.ramp_from_rows")
    refuse(config, rows, "an extension; extend.phases say the rows of each phase")
    refuse(config, ["run.steps"], "an extension; extend.phases say the steps of each phase")
    refuse(config, ["data.template", "data.text"], "an extension; they belong to SFT")
    refuse(config, DISTILL, "an extension; they belong to `fathom train distill`")
    if config.model:
        raise UserError("[model] has no effect in an extension; the model is that of run.init_from")


def phase_config(config: TrainConfig, number: int, start: Path) -> TrainConfig:
    """Phase `number` (from 1) as a run of its own, from the checkpoint `start`."""
    length, rows, steps = config.extend.phases[number - 1]
    data = dataclasses.replace(config.data, batch_rows=rows, sequence_length=length)
    run = dataclasses.replace(
        config.run, out=str(Path(config.run.out) / f"phase-{number}"), steps=steps, init_from=str(start),
        seed=config.run.seed + number - 1,
    )  # fmt: skip
    return dataclasses.replace(config, data=data, run=run)


def finished(phase: TrainConfig, exported: Path) -> bool:
    """Whether this phase has been run to its end and exported; UserError if it was another one."""
    saved = Path(phase.run.out) / "config.json"
    if not (exported / "config.json").exists() or not saved.exists():
        return False
    theirs = comparable(TrainConfig.from_dict(read_json(saved)).to_dict())
    if changed := differences(theirs, comparable(phase.to_dict())):
        raise UserError(
            f"{phase.run.out} holds a phase of another extension (different: {', '.join(changed)}); "
            "choose another run.out or remove it"
        )
    return True


def run_phase(
    phase: TrainConfig, target: ModelConfig, out: Path, lengths: list[int], mesh: Mesh | None, tick: Callable[[], None]
) -> None:
    """Train one phase to its end (or resume it) and export it."""
    model, d = start_model(phase), phase.data
    tokenizer = open_tokenizer(phase, model.config)
    heldout = token_stream(d.tokenizer, model.config, d.heldout, out / "tokens" / "heldout") if d.heldout else None

    def measured(nats: Nats) -> dict[str, float]:
        assert heldout is not None

        def ticking(batch: Batch) -> float:  # a long evaluation is no lost rank
            tick()
            return nats(batch)

        return by_length(ticking, heldout, rows=phase.run.eval_rows, lengths=lengths)

    def evaluate(nats: Nats) -> dict[str, float]:
        found = measured(nats)
        return found | {"mean": found[str(max([n for n in lengths if n <= d.sequence_length] or lengths[:1]))]}

    plain = model.config
    if plain.rope_scaling is None:  # the first phase
        set_config(model, target)
    elif plain.rope_scaling != target.rope_scaling:
        raise UserError(
            f"{phase.run.init_from} has another YaRN than this recipe makes; remove {out} or choose another run.out"
        )
    shards = token_stream(d.tokenizer, model.config, d.train, out / "tokens" / "train")
    tokens = phase.run.steps * d.batch_rows * d.sequence_length
    check_epochs(phase, shards, round(tokens * (1 - phase.extend.long_share)))
    text = text_rows(phase, shards, tokenizer, rows=1, length=d.sequence_length, seed=phase.run.seed)
    assert model.config.bos_token_id is not None  # token_stream has checked both
    long = LongRows(
        tokenizer.encode_plain, bos=model.config.bos_token_id, eos=model.config.eos_token_id[0],
        length=d.sequence_length, seed=phase.run.seed,
    )  # fmt: skip
    mixture = Mixture(text, long, rows=d.batch_rows, share=phase.extend.long_share)
    with Prefetched(mixture, d.workers) as data:
        trainer = Trainer(phase, model, data, evaluate if heldout else None, mesh=mesh, tick=tick)
        if heldout is not None and plain.rope_scaling is None:
            before(trainer, plain, out, measured)
        trainer.train()
    export(trainer)


def before(trainer: Trainer, plain: ModelConfig, out: Path, measured: Callable[[Nats], dict[str, float]]) -> None:
    """Measure the model as it came, with its config `plain`, and with YaRN switched on but nothing trained; once."""
    found = read_json(out / "lengths.json") if (out / "lengths.json").exists() else {}
    if YARN_ALONE in found:
        return
    target, curves = trainer.model.config, {}
    parts = [*trainer.parts.stages.values(), trainer.model]
    for name, config in ((AS_TRAINED, plain), (YARN_ALONE, target)):
        for part in parts:
            set_config(part, config)
        curves[name] = measured(trainer.parts.nats)
    if trainer.mesh.rank == 0:
        record(out, curves)


def record(out: Path, measured: dict[str, dict[str, float]]) -> None:
    """Add curves to lengths.json and draw all of them."""
    curves: dict[str, Any] = read_json(out / "lengths.json") if (out / "lengths.json").exists() else {}
    curves |= {name: {k: round(v, 4) for k, v in values.items()} for name, values in measured.items() if values}
    if curves:
        write_json(out / "lengths.json", curves)
        draw_lengths(curves, out / "lengths.png")


def last_evaluation(run: Path) -> dict[str, float]:
    """The newest held-out figures in a run's log, without their mean; empty when there are none."""
    found: dict[str, float] = {}
    for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines():
        found = json.loads(line).get("heldout") or found
    return {name: value for name, value in found.items() if name != "mean"}
