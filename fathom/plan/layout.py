"""Which rank holds what: stages of layers, routed experts, embedding and head (report section 3.2).

Layers are spread as parallel/stage.py spreads them: as evenly as possible, norm, head and MTP counting as one layer on
the last stage. A rank of a V (dualpipev) holds stage r and stage 2 R - 1 - r. Counts are parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from fathom.model.cost import layer_parameters, parameters
from fathom.plan.job import Job
from fathom.runtime import UserError


@dataclass(frozen=True)
class Stage:
    """One part of the model."""

    index: int
    layers: range
    first: bool  # has the embedding
    last: bool  # has final norm, head and MTP modules

    def blocks(self, job: Job) -> list[int]:
        """Numbers of its transformer blocks, MTP's included."""
        c = job.model
        extra = range(c.num_hidden_layers, c.num_hidden_layers + c.num_nextn_predict_layers) if self.last else ()
        return [*self.layers, *extra]


@dataclass(frozen=True)
class Holding:
    """Parameters on one device."""

    plain: int  # replicated over data ranks
    routed: int  # routed experts: replicated over expert copies

    @property
    def total(self) -> int:
        """All of them."""
        return self.plain + self.routed


def stages(job: Job) -> list[Stage]:
    """The model cut into job.stages parts."""
    layers, count = job.model.num_hidden_layers, job.stages
    units = layers + (count > 1)
    if units < count:
        raise UserError(f"{layers} layers cannot be cut into {count} stages; use at most {layers + 1}")
    sizes = [units // count + (stage < units % count) for stage in range(count)]
    starts = [sum(sizes[:stage]) for stage in range(count)]
    return [
        Stage(i, range(start, min(start + size, layers)), i == 0, i == count - 1)
        for i, (start, size) in enumerate(zip(starts, sizes, strict=True))
    ]


def held(job: Job, rank: int) -> list[Stage]:
    """The stages of pipeline rank `rank`."""
    parts = stages(job)
    return [parts[rank]] if job.stages == job.pipeline else [parts[rank], parts[job.stages - 1 - rank]]


def routed_parameters(job: Job, block: int) -> int:
    """Of all routed experts of a block together."""
    c = job.model
    return 3 * c.hidden_size * c.moe_intermediate_size * c.n_routed_experts if c.is_moe_layer(block) else 0


def holding(job: Job, rank: int) -> Holding:
    """What one device of pipeline rank `rank` holds."""
    c, mine = job.model, held(job, rank)
    vocabulary, plain, routed = c.vocab_size * c.hidden_size, 0, 0
    for stage in mine:
        for block in stage.blocks(job):
            experts = routed_parameters(job, block)
            plain += layer_parameters(c, block)[0] - experts
            routed += experts // job.expert
        if stage.last:
            plain += c.hidden_size + (0 if c.tie_word_embeddings else vocabulary)
            plain += c.num_nextn_predict_layers * (2 * c.hidden_size**2 + 3 * c.hidden_size)
    first, last = any(s.first for s in mine), any(s.last for s in mine)
    if first or (last and (c.num_nextn_predict_layers or c.tie_word_embeddings)):  # MTP reads the embedding, too
        plain += vocabulary
    return Holding(plain, routed)


def model_parameters(job: Job) -> int:
    """Main model and MTP, nothing twice."""
    return parameters(job.model).with_mtp
