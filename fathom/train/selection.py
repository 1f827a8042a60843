"""Which parts of a model train: `run.train`, a list of these. What is not named stays as run.init_from has it.

    all         everything
    experts     routed experts of the main model
    router      its gates; their biases, which balancing moves, stand still unless this trains
    mtp         the MTP modules, whole: norms, attention, experts, gates and biases
    embedding   embedding and output head
    norms       gains of all norms of the main model
    lora        adapters beside frozen matrices (lora.py)

A frozen parameter wants no gradient: no product is computed for one, autograd computes nothing below the first layer
that trains, no optimizer state exists, and checkpoints of the run leave it out (base.py: exports take it from where the
run started). With "mtp" alone the main model runs forward only, and without a graph.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from fathom.parallel.expert import is_routed

WHOLE = ("all",)


def part_of(name: str) -> str:
    """The part that a parameter, by its name in the whole model, belongs to; "rest" trains with "all" alone."""
    if name.endswith(("lora_A", "lora_B")):
        return "lora"
    if name.startswith("mtp."):
        return "mtp"
    if is_routed(name):
        return "experts"
    if name.endswith(".mlp.gate.weight"):
        return "router"
    if name in ("embed_tokens.weight", "lm_head.weight"):
        return "embedding"
    return "norms" if name.endswith("norm.weight") else "rest"


def trains(name: str, parts: Collection[str]) -> bool:
    """Whether a parameter trains in a run of `parts`."""
    return "all" in parts or part_of(name) in parts


def main_trains(parts: Collection[str]) -> bool:
    """Whether anything beside the MTP modules may train, so that the main model needs a loss of its own."""
    return any(part != "mtp" for part in parts)


def freeze(parameters: Mapping[str, nn.Parameter], parts: Collection[str]) -> dict[str, nn.Parameter]:
    """Say which parameters want a gradient; returns those."""
    for name, parameter in parameters.items():
        parameter.requires_grad_(trains(name, parts))
    return {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
