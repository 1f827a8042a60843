"""A split model is the same function: logits, decoding and MTP over 2 and 4 gloo ranks against the whole model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parallel.bodies import Case, outputs, split_outputs
from parallel.distributed import run

from fathom.config import ModelConfig
from fathom.engine.naive import generate_tokens
from fathom.engine.params import SamplingParams
from fathom.kernels.ops import pick
from fathom.model.moe import Experts
from fathom.model.transformer import DeepseekV3
from fathom.parallel.group import Group
from fathom.parallel.tensor import ExpertSlice, check_sizes, shard
from fathom.runtime import UserError

V3 = ModelConfig(
    vocab_size=96, hidden_size=64, intermediate_size=72, moe_intermediate_size=24, num_hidden_layers=3,
    num_nextn_predict_layers=1, num_attention_heads=4, n_routed_experts=8, num_experts_per_tok=2, n_group=4,
    topk_group=2, first_k_dense_replace=1, q_lora_rank=24, kv_lora_rank=32, qk_nope_head_dim=12, qk_rope_head_dim=8,
    v_head_dim=20, max_position_embeddings=64, initializer_range=0.2, eos_token_id=(),
)  # fmt: skip
V2 = V3.replace(
    model_type="deepseek_v2", num_nextn_predict_layers=0, q_lora_rank=None, n_shared_experts=2, scoring_func="softmax",
    topk_method="greedy", n_group=1, topk_group=1, norm_topk_prob=False, routed_scaling_factor=1.0,
)  # fmt: skip
CASES = [
    Case("v3", V3),
    Case("v2", V2),
    Case("bias", V3.replace(attention_bias=True, num_nextn_predict_layers=0, n_shared_experts=0)),
    Case("tied", V3.replace(tie_word_embeddings=True, first_k_dense_replace=0)),
    Case("bf16", V3, torch.bfloat16),
]


@pytest.mark.parametrize(("size", "cases"), [(2, CASES), (4, CASES[:1])])
def test_split_equals_whole(size: int, cases: list[Case], tmp_path: Path) -> None:
    ended = run(size, split_outputs, cases, folder=tmp_path)
    assert [rank.code for rank in ended.values()] == [0] * size, ended
    for case in cases:
        model = case.model()
        whole = outputs(model, case.tokens())
        answer = generate_tokens(model, case.tokens()[0].tolist(), SamplingParams(0.0, max_tokens=5))
        total = sum(p.numel() for p in model.parameters())
        first = ended[0].value[case.name]
        assert size * first["parameters"] > total > first["parameters"] * (1 + 0.4 * (size - 1))
        for name, expected in whole.items():
            assert first[name].dtype == torch.float32 and first[name].shape == expected.shape
            for rank in ended.values():
                assert torch.equal(rank.value[case.name][name], first[name]), "ranks must hold the same bits"
            if case.dtype == torch.float32:
                torch.testing.assert_close(first[name], expected, rtol=1e-4, atol=1e-4)
            else:  # routing may flip for single tokens
                assert float((first[name] - expected).abs().median() / expected.std()) < 0.05, name
        if case.dtype == torch.float32:
            assert first["answer"] == [step.token_id for step in answer]


def group(rank: int, size: int) -> Group:
    """A rank that never talks to the others."""
    return Group(rank, size, None, torch.device("cpu"))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["torch", "reference"])
def test_expert_slices_add_up(name: str) -> None:
    experts = Experts(V3, pick(name))
    generator = torch.Generator().manual_seed(0)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    x = torch.randn(7, V3.hidden_size, generator=generator)
    indices = torch.randint(0, 6, (7, 2), generator=generator)  # nobody chooses experts 6 and 7
    weights = torch.rand(7, 2, generator=generator)
    with torch.no_grad():
        parts = [ExpertSlice(experts, group(rank, 4))(x, indices, weights) for rank in range(4)]
        torch.testing.assert_close(sum(parts), experts(x, indices, weights), rtol=1e-5, atol=1e-4)
    assert all(part.abs().sum() > 0 for part in parts[:3]) and not parts[3].any()


@pytest.mark.parametrize(
    ("config", "ranks", "named"),
    [
        (V3, 3, "num_attention_heads is 4"),
        (V3.replace(vocab_size=98), 4, "vocab_size is 98"),
        (V3.replace(intermediate_size=70), 4, "intermediate_size is 70"),
        (V3.replace(n_routed_experts=6, n_group=1, topk_group=1), 4, "n_routed_experts is 6"),
        (V3.replace(moe_intermediate_size=22), 4, "shared experts' width is 22"),
    ],
)
def test_sizes_that_do_not_divide(config: ModelConfig, ranks: int, named: str) -> None:
    model = DeepseekV3(config, device="meta")
    before = {name: p.shape for name, p in model.named_parameters()}
    with pytest.raises(UserError, match=f"over {ranks} processes: .*{named}"):
        shard(model, group(0, ranks))
    assert {name: p.shape for name, p in model.named_parameters()} == before


def test_sides_that_no_layer_has_do_not_matter() -> None:
    check_sizes(V3.replace(intermediate_size=71, first_k_dense_replace=0), 4)
    check_sizes(V3.replace(n_routed_experts=0, moe_intermediate_size=23), 4)


def test_names_stay_and_memory_goes() -> None:
    model = DeepseekV3(V3)
    names = [name for name, _ in model.named_parameters()]
    shard(model, group(1, 2))
    assert [name for name, _ in model.named_parameters()] == names
    for parameter in model.parameters():
        assert parameter.untyped_storage().nbytes() == parameter.numel() * parameter.element_size()


def test_training_is_refused() -> None:
    with pytest.raises(AssertionError, match="inference"):
        group(0, 2).sum(torch.ones(2, requires_grad=True) * 2)
