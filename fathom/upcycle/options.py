"""The choices of an upcycle, and the dimensions that follow from them and from the source: decided before any work.

rope width   P d for P >= 1 places a pair; default G d, the smallest that gives every key head a place
values       exact while the cache stays small: at most DeepSeek-V3's own 70,272 bytes a token (BF16), or at most twice
             what the original keeps; else constant (latent.py)
nope width   what the part without rotation needs, filled with zeros up to a head width that attention kernels have
             (64, 128, 256; beyond that a multiple of 64)
experts      the width follows from the counts (exact, sparse) or is given (grown): feed_forward.py
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fathom.config import ModelConfig
from fathom.runtime import UserError
from fathom.upcycle.attention import KeyLayout
from fathom.upcycle.feed_forward import Experts
from fathom.upcycle.source import LlamaConfig

V3_CACHE_BYTES = 70_272
V2_LITE_LAYERS = (26, 27)  # llama.cpp takes these counts for V2-Lite, without query compression


@dataclass(frozen=True)
class Options:
    """None: decided from the source. An option without effect is refused."""

    rope_width: int | None = None
    mix: Literal["principal", "none"] = "principal"
    slow_angle: float | None = None  # radians over the context; pairs that turn less do not turn at all
    nope_width: int | None = None
    values: Literal["auto", "exact", "constant"] = "auto"
    latent: int | None = None
    ffn: Literal["exact", "grown", "sparse", "dense"] = "exact"
    experts: int | None = None
    chosen: int | None = None
    shared: int | None = None  # neurons
    expert_width: int | None = None
    dense_layers: int | None = None
    mtp: Literal[0, 1] = 0
    untie: bool = False  # vLLM builds the head apart from the embedding whatever the config says
    to: Literal["bf16", "fp32", "fp8"] = "bf16"
    calibrate: Path | None = None  # None: the bundled text
    verify: bool = True
    held_out: int | None = None  # tokens to compare on
    row: int | None = None  # in rows of this length; None: 512, or the whole context where some pairs do not turn
    seed: int | None = None  # of grown experts and their router, and of the clusters of a sparse split


@dataclass(frozen=True)
class Plan:
    """What will be made."""

    source: LlamaConfig
    config: ModelConfig
    keys: KeyLayout
    experts: Experts | None
    values: Literal["exact", "constant"]


def make_plan(source: LlamaConfig, options: Options) -> Plan:
    """All dimensions; what cannot be is a UserError."""
    _refuse_ignored(source, options)
    keys = _key_layout(source, options)
    width = _constant_width(source, keys, options)
    values = options.values if options.values != "auto" else _cheaper(source, keys, width)
    if options.latent is not None and values == "exact":
        raise UserError(
            f"--latent {options.latent} only means something with --values constant; the latent of exact values is the "
            f"hidden state, {source.hidden_size} wide"
        )
    experts = _experts(source, options)
    layers = source.num_hidden_layers
    dense_layers = _dense_layers(layers, options)
    config = ModelConfig(
        vocab_size=source.vocab_size,
        hidden_size=source.hidden_size,
        intermediate_size=source.intermediate_size,
        moe_intermediate_size=experts.width if experts else source.intermediate_size,
        num_hidden_layers=layers,
        num_nextn_predict_layers=options.mtp,
        num_attention_heads=source.num_attention_heads,
        n_routed_experts=experts.routed if experts else 0,
        n_shared_experts=experts.shared if experts else 0,
        num_experts_per_tok=experts.chosen if experts else 0,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=float(experts.chosen) if experts else 1.0,
        first_k_dense_replace=dense_layers if experts else layers + options.mtp,
        q_lora_rank=None if layers in V2_LITE_LAYERS else source.hidden_size,
        kv_lora_rank=source.hidden_size if values == "exact" else width,
        qk_nope_head_dim=keys.nope,
        qk_rope_head_dim=keys.rope,
        v_head_dim=source.head_dim,
        rope_theta=keys.rope_theta,
        max_position_embeddings=source.max_position_embeddings,
        rms_norm_eps=source.rms_norm_eps,
        tie_word_embeddings=source.tie_word_embeddings and not options.untie,
        bos_token_id=source.bos_token_id,
        eos_token_id=source.eos_token_id,
        pad_token_id=source.pad_token_id,
    )
    return Plan(source, config, keys, experts, values)


def _refuse_ignored(source: LlamaConfig, options: Options) -> None:
    if options.untie and not source.tie_word_embeddings:
        raise UserError("--untie has no effect: the source's head is a tensor of its own already")
    for flag, value in (("--held-out", options.held_out), ("--row", options.row)):
        if value is not None and not options.verify:
            raise UserError(f"{flag} {value} only means something where the result is compared, not with --no-verify")
        if value is not None and value < 2:
            raise UserError(f"{flag} is {value}; it must be at least 2 tokens")
    if options.seed is not None and options.ffn not in ("grown", "sparse"):
        raise UserError(f"--seed {options.seed} only means something with --ffn grown or sparse, not {options.ffn}")


def _key_layout(source: LlamaConfig, options: Options) -> KeyLayout:
    groups, head = source.num_key_value_heads, source.head_dim
    width = groups * head if options.rope_width is None else options.rope_width
    if width % head or width < head:
        raise UserError(
            f"--rope-width is {width}; it must be a multiple of the head width {head}, {groups * head} for a place for "
            f"each of the {groups} key heads"
        )
    rotated = head // 2
    if options.slow_angle is not None:
        if not 0 < options.slow_angle < math.inf:
            raise UserError(f"--slow-angle is {options.slow_angle}; it must be a number of radians above 0")
        turns = [source.max_position_embeddings * source.rope_theta ** (-2 * i / head) for i in range(head // 2)]
        rotated = sum(angle >= options.slow_angle for angle in turns)
        if rotated < 1:
            raise UserError(
                f"--slow-angle is {options.slow_angle}, and even the fastest pair turns by {turns[0]:.0f}; choose less"
            )
    draft = KeyLayout(source.num_attention_heads, groups, head, width // head, rotated, 0, source.rope_theta)
    least = max(draft.still, 1)
    nope = _kernel_width(draft.rope + least) - draft.rope if options.nope_width is None else options.nope_width
    if nope < least:
        raise UserError(f"--nope-width is {nope}; the keys that do not turn need {least}")
    return KeyLayout(draft.heads, groups, head, draft.per_pair, rotated, nope, source.rope_theta)


def _kernel_width(width: int) -> int:
    return next((w for w in (64, 128, 256) if w >= width), -(-width // 64) * 64)


def _constant_width(source: LlamaConfig, keys: KeyLayout, options: Options) -> int:
    slow = 2 * (keys.pairs - keys.rotated) * (keys.groups - 1)  # per group under constant values, per head under exact
    needed = source.num_key_value_heads * source.head_dim + keys.still + slow + 1
    width = -(-needed // 64) * 64 if options.latent is None else options.latent
    if width < needed:
        raise UserError(f"--latent is {width}; the values and the constant need at least {needed}")
    return width


def _cheaper(source: LlamaConfig, keys: KeyLayout, constant: int) -> Literal["exact", "constant"]:
    layers = source.num_hidden_layers
    exact = 2 * layers * (source.hidden_size + keys.rope)
    original = 2 * layers * 2 * source.num_key_value_heads * source.head_dim
    small = exact <= max(V3_CACHE_BYTES, 2 * original)
    return "exact" if small or constant >= source.hidden_size else "constant"


def _dense_layers(layers: int, options: Options) -> int:
    if options.ffn == "dense":
        if options.dense_layers is not None:
            raise UserError("--dense-layers only means something with experts; with --ffn dense all layers are")
        return layers
    dense = 1 if options.dense_layers is None else options.dense_layers
    if not 0 <= dense < layers:
        raise UserError(f"--dense-layers is {dense}; it must be from 0 to {layers - 1}, or --ffn dense for all")
    return dense


def _experts(source: LlamaConfig, options: Options) -> Experts | None:
    meant = {
        "--experts": (options.experts, ("exact", "sparse", "grown")),
        "--chosen": (options.chosen, ("sparse", "grown")),
        "--shared": (options.shared, ("exact", "sparse")),
        "--expert-width": (options.expert_width, ("grown",)),
    }
    for flag, (value, kinds) in meant.items():
        if value is not None and options.ffn not in kinds:
            raise UserError(f"{flag} {value} has no meaning with --ffn {options.ffn}, only with {' or '.join(kinds)}")
        if value is not None and value < (0 if flag == "--shared" else 1):
            raise UserError(f"{flag} is {value}; it must be at least {0 if flag == '--shared' else 1}")
    if options.ffn == "dense":
        return None
    experts, neurons = options.experts or 8, source.intermediate_size
    if options.ffn == "grown":
        width = options.expert_width or max(w for w in range(1, max(neurons // 24, 1) + 1) if neurons % w == 0)
        if neurons % width:
            raise UserError(f"--expert-width is {width}; it must divide the {neurons} neurons of the FFN")
        return _checked(Experts(experts, options.chosen or min(2, experts), neurons // width, width))
    shared = _shared_neurons(neurons, experts) if options.shared is None else options.shared
    width, rest = divmod(neurons - shared, experts)
    if rest or width < 1 or shared % width:
        raise UserError(
            f"{neurons} neurons with {shared} of them shared do not split into {experts} experts of a width that "
            "divides the shared ones; choose other --experts or --shared"
        )
    chosen = experts if options.ffn == "exact" else options.chosen or max(experts * 3 // 4, 1)
    return _checked(Experts(experts, chosen, shared // width, width))


def _shared_neurons(neurons: int, experts: int) -> int:
    """About a third shared: the count of shared experts next to half the routed ones with which the widths come out."""
    counts = [s for s in range(1, 4 * experts) if neurons % (experts + s) == 0]
    if not counts:
        raise UserError(
            f"{neurons} neurons cannot be cut into {experts} experts and some more of one width; set --shared"
        )
    best = min(counts, key=lambda s: abs(s - experts / 2))
    return best * (neurons // (experts + best))


def _checked(experts: Experts) -> Experts:
    if experts.chosen > experts.routed:
        raise UserError(f"--chosen is {experts.chosen}; there are {experts.routed} experts to choose from")
    return experts
