"""What is measured: the prompts, the measurements, and what bounds each of them.

A decoding step of B streams reads every activated weight once, plus the routed experts that at least one stream chose:
with E experts of which each token takes K, E * (1 - (1 - K/E)^B) of them if routing is even. It also reads the latents
of every stream. That many bytes by the bandwidth of this machine is the shortest a step can take: the floor. Drafts can
beat it, since they bring more than one token a step. A prompt is bound by arithmetic: 2 operations per activated weight
and token (the head's only for the last token), by the speed of a large matrix product.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from fathom.config import ModelConfig
from fathom.model.cost import cache_bytes_per_token, flops_per_token, parameters

PROMPT = 16
LONG = 1000
OPENINGS = (
    "Once upon a time there was a little fox who lived near a river and wanted to learn how to swim.",
    "One day a girl named Lily found a big red box in the garden behind her house and opened it.",
    "Tom and his dog went to the park to play with a blue ball that his mother gave him.",
    "The old man sat by the window and looked at the snow that fell on the quiet street outside.",
    "In a small village near the sea there lived a boy who loved to draw pictures of the big ships.",
    "A bird with a broken wing sat under a tree, and a kind cat came to see what was wrong.",
    "Every morning the baker got up before the sun and made warm bread for all the people in town.",
    "Mia was sad because she had lost her favorite toy, a small brown bear with only one eye.",
    "The teacher asked the class to bring something that they liked, and Ben brought a jar of sand.",
    "When the rain stopped, the children put on their boots and ran out to jump in the puddles.",
    "There was a king who had everything he wanted, but he could not sleep well at night any more.",
    "A little mouse wanted to see the world, so she packed some cheese and said goodbye to her family.",
    "Grandma told us a story about a dragon who was afraid of the dark and always kept a lamp on.",
    "The train was late, and so Sam and his sister played a game with the leaves on the ground.",
    "Deep in the forest an owl and a squirrel shared one tree, and they did not like each other at all.",
    "On her birthday Anna got a seed in a pot, and she gave it water and waited for many days.",
)


@dataclass(frozen=True)
class Measure:
    """`streams` 0: reading a prompt."""

    name: str
    streams: int
    new: int


def measures(quick: bool) -> list[Measure]:
    new = 40 if quick else 200
    return [Measure("1 stream", 1, new), Measure("8 streams", 8, new), Measure("16 streams", 16, new),
            Measure(f"prompt of {LONG}", 0, 1)]  # fmt: skip


def prompts(measure: Measure, round_: int, encode: Callable[[str], list[int]]) -> list[list[int]]:
    """The prompts of one repeat: others in every repeat, so that no cache of prefixes has an easy life."""
    draw = random.Random(1000 * round_ + measure.streams)
    if measure.streams == 0:
        text = f"Story number {round_ + 17}."
        while len(ids := encode(text)) < LONG:
            text += " " + " ".join(draw.sample(OPENINGS, len(OPENINGS)))
        return [ids[:LONG]]
    return [encode(OPENINGS[(round_ + i) % len(OPENINGS)])[:PROMPT] for i in range(measure.streams)]


def step_bytes(c: ModelConfig, streams: int, new: int, value_bytes: int) -> float:
    """Read by one decoding step, at the middle of the answer."""
    k, experts = c.num_experts_per_tok, c.n_routed_experts
    touched = experts * (1 - (1 - k / experts) ** streams)
    expert = 3 * c.hidden_size * c.moe_intermediate_size
    moe_layers = sum(c.is_moe_layer(i) for i in range(c.num_hidden_layers))
    weights = parameters(c).activated + moe_layers * (touched - k) * expert
    return weights * value_bytes + streams * (PROMPT + new / 2) * cache_bytes_per_token(c, value_bytes)


def floor_rate(c: ModelConfig, measure: Measure, value_bytes: int, bandwidth: float, flops: float) -> float:
    """Tokens per second that this machine allows without drafts."""
    if measure.streams == 0:
        return flops / (flops_per_token(c, LONG // 2) - 2 * c.vocab_size * c.hidden_size)
    return measure.streams * bandwidth / step_bytes(c, measure.streams, measure.new, value_bytes)
