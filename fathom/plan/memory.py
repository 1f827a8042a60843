"""Bytes on one device, item by item, and what one token leaves in memory between its forward and its backward.

    weights, gradients     FP32, all that the device holds (ZeRO-1 shards neither; fsdp2 shards both)
    optimizer              two moments (Muon's matrices: one), and the EMA if kept, of 1/N of it
                                                                           N: ranks that hold the same parameters
    activations            kept per token x tokens of a micro-batch x micro-batches in flight (schedule)
    GEMM weights           FP8 blocks or BF16 copies of one layer, made for each product
    buffers                the largest all-to-all, twice, and the messages of the pipeline

Kept per token and block (a: bytes of an activation, k: bytes of a linear layer's kept input, s: of the residual stream
and of normed values; BF16: a 2, k 2; FP8: a 2, k 1 + 4/128; s 4):

                 recompute "none"                                          "report"
    stream       2 D s                                                     the same (inputs of both norms)
    attention    k (2 D + C_q + C_kv) + a (C_q + C_kv + R)                 D s, and the core's results a H V + 4 H
                 + a H (2 (N + R) + V) + o_proj's input a H V (FP8: 2 H V)
    SwiGLU       k (2 D + I) + 3 a I                                       nothing: made again from the normed input
    routed       k D x rows per token that arrive + (FP8: k, else a) 2 I K, and scores 4 (E + K): both
    normed input of the feed-forward part: D s for the gate                D s
    "block" keeps the block's input, D s, and nothing else.

Estimates: allocator overhead, temporaries inside one operation and library workspaces are not in here; what a real
forward pass of minnow saves was counted at 1.1 to 1.3 times this for "none" and within 5 % for "report" and "block".
Two deviations from the report cost memory: master weights are not sharded, and the residual stream is FP32.
"""

from __future__ import annotations

from fathom.config import ModelConfig
from fathom.plan.job import Job
from fathom.plan.layout import Stage, held, holding, routed_parameters
from fathom.plan.traffic import expected_places, row_bytes

STREAM_BYTES = 4  # hidden states between blocks: embedding rows are FP32 and every block adds to them
ACTIVATION_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp8": 2.0}
KEPT_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp8": 1 + 4 / 128}  # of a linear layer's input, for its weight gradient


def in_flight(job: Job, rank: int) -> int:
    """Most (stage, micro-batch) pairs whose activations a rank holds at once (report Table 2)."""
    ranks, micro = job.pipeline, job.micro_batches
    if ranks == 1:
        return 1
    return {
        "gpipe": micro, "1f1b": min(ranks - rank, micro), "zb1p": min(ranks, micro),
        "dualpipev": min(2 * ranks + 1, 2 * micro),
    }[job.schedule]  # fmt: skip


def kept_per_token(job: Job, block: int) -> dict[str, float]:
    """Bytes by part of one block, "block" recompute aside."""
    c = job.model
    a, k = ACTIVATION_BYTES[job.gemm], KEPT_BYTES[job.gemm]
    inputs = 1 if job.gemm == "fp32" else 2  # FP32 layers share the tensor they read; others keep a copy each
    normed = float(c.hidden_size * STREAM_BYTES)
    again = job.recompute == "report"
    core = normed + c.num_attention_heads * (a * c.v_head_dim + 4)
    out = {"stream": 2 * normed, "attention": core if again else _attention(job, a, k, inputs)}
    if not c.is_moe_layer(block):
        return out | {"feed-forward": normed if again else _swiglu(job, c.intermediate_size, a, k, inputs)}
    arrive = expected_places(c, job.expert)
    alone = job.gemm == "fp32" and job.expert == 1  # then experts keep the normed input itself
    experts = 0.0 if alone else k * c.hidden_size * arrive
    experts += (k if job.gemm == "fp8" else a) * 2 * c.moe_intermediate_size * c.num_experts_per_tok
    gate = 4.0 * (c.n_routed_experts + c.num_experts_per_tok)
    shared = 0 if again else c.n_shared_experts * c.moe_intermediate_size
    feed = normed + experts + gate + (_swiglu(job, shared, a, k, inputs) if shared else 0.0)
    return out | {"feed-forward": feed}


def _attention(job: Job, a: float, k: float, inputs: int) -> float:
    c = job.model
    heads, value, latent = c.num_attention_heads, c.v_head_dim, c.kv_lora_rank
    query = c.q_lora_rank or 0
    bytes_ = k * (inputs * c.hidden_size + query + latent) + a * (query + latent + c.qk_rope_head_dim)
    return bytes_ + heads * (value * (2.0 if job.gemm == "fp8" else a) + a * (2 * c.qk_head_dim + value))


def _swiglu(job: Job, width: int, a: float, k: float, inputs: int) -> float:
    return inputs * k * job.model.hidden_size + (3 * a + k) * width


def stage_activations(job: Job, stage: Stage) -> float:
    """Bytes that one micro-batch leaves on one stage; of "block" recompute the one block at work is not in here."""
    blocks = stage.blocks(job)
    if job.recompute == "block":
        per_token = float(len(blocks) * job.model.hidden_size * STREAM_BYTES)
    else:
        per_token = sum(sum(kept_per_token(job, b).values()) for b in blocks)
    if stage.last:  # input of the final norm, normed input of the head; logits never stay (computed in chunks)
        per_token += 2 * job.model.hidden_size * STREAM_BYTES
    return per_token * job.micro_tokens


def linear_parameters(job: Job, block: int) -> int:
    """Matrices of a block that run in the GEMM's precision on one device; gate, norms and router bias do not."""
    c = job.model
    per_expert = 3 * c.hidden_size * c.moe_intermediate_size
    feed = 3 * c.hidden_size * c.intermediate_size
    if c.is_moe_layer(block):
        feed = per_expert * c.n_shared_experts + routed_parameters(job, block) // job.expert
    return _attention_matrices(c) + feed + (2 * c.hidden_size**2 if block >= c.num_hidden_layers else 0)


def _attention_matrices(c: ModelConfig) -> int:
    heads, hidden = c.num_attention_heads, c.hidden_size
    query_in = c.q_lora_rank or hidden
    query = (hidden * c.q_lora_rank if c.q_lora_rank else 0) + query_in * heads * c.qk_head_dim
    latent = hidden * (c.kv_lora_rank + c.qk_rope_head_dim)
    return query + latent + c.kv_lora_rank * heads * (c.qk_nope_head_dim + c.v_head_dim) + heads * c.v_head_dim * hidden


def memory(job: Job, rank: int) -> dict[str, float]:
    """Bytes by item on one device of pipeline rank `rank`."""
    have, mine = holding(job, rank), held(job, rank)
    slices = have.plain / job.data + have.routed / job.expert_copies
    kept = have.total if job.sharding == "zero1" else slices
    flight = in_flight(job, rank) / len(mine)
    blocks = [b for stage in mine for b in stage.blocks(job)]
    activations = flight * sum(stage_activations(job, stage) for stage in mine)
    if job.recompute == "block" and blocks:
        activations += job.micro_tokens * max(sum(kept_per_token(job, b).values()) for b in blocks)
    out = {
        "weights (FP32)": 4.0 * kept,
        "gradients (FP32)": 4.0 * kept,
        ("Muon and AdamW" if job.muon else "AdamW") + " moments": job.moment_bytes * _moments(job, blocks, slices),
        "weight average (EMA)": 4.0 * slices if job.ema else 0.0,
        "activations": activations,
        "GEMM weights": _gemm_weights(job, blocks),
        "buffers": _buffers(job),
    }
    if job.sharding == "fsdp2":
        out["gathered layer"] = 4.0 * max((linear_parameters(job, b) for b in blocks), default=0)
    return out


def _moments(job: Job, blocks: list[int], slices: float) -> float:
    """Numbers that the optimizer keeps; Muon's matrices are those that run in the GEMM's precision."""
    if not job.muon:
        return 2.0 * slices
    routed = sum(routed_parameters(job, b) for b in blocks) / job.expert
    plain = sum(linear_parameters(job, b) for b in blocks) - routed
    return 2.0 * slices - plain / job.data - routed / job.expert_copies


def _gemm_weights(job: Job, blocks: list[int]) -> float:
    """FP8 blocks and BF16 operands are made from the masters for each product: one layer's at a time."""
    sizes = [linear_parameters(job, b) for b in blocks]
    if job.gemm == "fp32" or not sizes:
        return 0.0
    return (2.0 if job.gemm == "bf16" else 1 + 4 / 128**2) * max(sizes)


def _buffers(job: Job) -> float:
    out = 0.0
    if job.expert > 1:
        wire = max(row_bytes(job, w) for w in (job.dispatch, combine_wire(job)))
        out += 2 * job.micro_tokens * expected_places(job.model, job.expert) * wire
    if job.pipeline > 1:
        out += 4 * job.micro_tokens * job.model.hidden_size * STREAM_BYTES  # in and out, both directions
    return out


def combine_wire(job: Job) -> str:
    """What comes back from the experts: BF16 unless everything is FP32."""
    return "fp32" if job.dispatch == "fp32" else "bf16"
