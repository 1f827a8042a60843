"""Grouped-query attention as MLA, one layer at a time, against scores by definition in FP64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fathom.model.mla import MultiHeadLatentAttention
from fathom.model.rope import inverse_frequencies, rotation
from fathom.upcycle.attention import KeyLayout, complex_rows, plain_mix, real_rows, split_keys
from fathom.upcycle.calibrate import Sample
from fathom.upcycle.layer import attention_tensors
from fathom.upcycle.llama import LlamaLayer
from fathom.upcycle.llama import rotation as llama_rotation
from fathom.upcycle.options import Options, Plan, make_plan
from fathom.upcycle.principal import principal_mix
from fathom.upcycle.source import LlamaConfig

HIDDEN = 48


def source(heads: int = 6, groups: int = 3, bias: bool = False, **changes: Any) -> LlamaConfig:
    values: dict[str, Any] = {
        "model_type": "llama", "vocab_size": 64, "hidden_size": HIDDEN, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": 8, "rope_theta": 1000.0,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 64, "tie_word_embeddings": False, "qkv_bias": bias,
        "bos_token_id": None, "eos_token_id": (), "pad_token_id": None,
    }  # fmt: skip
    return LlamaConfig(**(values | changes))


def random_layer(config: LlamaConfig) -> LlamaLayer:
    generator = torch.Generator().manual_seed(1)

    def new(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    biases = {f"{n}_bias": new(w) for n, w in (("q", q), ("k", kv), ("v", kv))} if config.qkv_bias else {}
    d, i = config.hidden_size, config.intermediate_size
    return LlamaLayer(
        config, 1 + new(d), new(q, d), new(kv, d), new(kv, d), new(d, q), 1 + new(d), new(i, d), new(i, d), new(d, i),
        **biases,
    )  # fmt: skip


def inputs(rows: int = 2, tokens: int = 40) -> Tensor:
    """Normed hidden states, of root mean square 1, whose first value is 1 for every token: an exact constant."""
    x = torch.randn(rows, tokens, HIDDEN, generator=torch.Generator().manual_seed(2))
    x[..., 0] = 0
    x *= ((HIDDEN - 1) / x.square().sum(-1, keepdim=True)).sqrt()
    x[..., 0] = 1
    return x


def converted(plan: Plan, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    """What V3's attention makes of `x` with the converted weights."""
    attention = MultiHeadLatentAttention(plan.config)
    weights = {n.removeprefix("self_attn."): t for n, t in tensors.items() if n.startswith("self_attn.")}
    attention.load_state_dict(weights)
    with torch.no_grad():
        return attention(x, rotation(plan.config, torch.arange(x.shape[1])))


def by_definition(layer: LlamaLayer, layout: KeyLayout, mix: Tensor, x: Tensor) -> Tensor:
    """Attention in FP64 whose components have the frequencies that the layout says."""
    c = layer.config
    q, k, v = layer.project(x * layer.input_norm)
    q, k = (torch.view_as_complex(t.double().unflatten(-1, (-1, 2))) for t in (q, k))  # [N, T, heads, n]
    whole = torch.eye(c.num_key_value_heads, dtype=torch.complex128).repeat(layout.pairs, 1, 1)
    whole[: layout.rotated] = mix
    k = torch.einsum("ncg,btgn->btcn", whole, k)
    inverse = torch.linalg.inv(whole).mH
    per_group = c.num_attention_heads // c.num_key_value_heads
    time = torch.arange(x.shape[1])
    angle = (time[:, None] - time)[:, :, None, None] * layout.frequencies().T  # [t, s, component, pair]
    turn = torch.polar(torch.ones_like(angle), angle)
    out = []
    for head in range(c.num_attention_heads):
        mine = inverse[:, :, head // per_group].T * q[:, :, head, None]  # [N, T, component, pair]
        score = torch.einsum("btcn,bscn,tscn->bts", mine, k.conj(), turn).real / c.head_dim**0.5
        p = score.masked_fill(time[:, None] < time, float("-inf")).softmax(-1)
        out.append(p @ v[:, :, head // per_group].double())
    return (torch.cat(out, dim=-1) @ layer.o.double().T).float()


CASES = [
    ({"groups": 3}, {}),
    ({"groups": 3}, {"mix": "none"}),
    ({"groups": 3}, {"rope_width": 48}),
    ({"groups": 3}, {"rope_width": 32, "mix": "none"}),
    ({"groups": 3}, {"rope_width": 8}),  # one place: two components of three do not turn
    ({"groups": 6}, {"slow_angle": 3.0}),
    ({"groups": 2}, {"rope_width": 8, "slow_angle": 3.0, "nope_width": 40}),
    ({"groups": 1}, {}),
    ({"groups": 3, "num_hidden_layers": 27}, {}),  # without query compression
]


@pytest.mark.parametrize(("dims", "choices"), CASES)
@pytest.mark.parametrize("values", ["exact", "constant"])
def test_converted_attention_is_the_attention_with_these_frequencies(
    dims: dict[str, Any], choices: dict[str, Any], values: str
) -> None:
    config = source(**dims)
    plan = make_plan(config, Options(values=values, **choices))  # type: ignore[arg-type]
    layer, x = random_layer(config), inputs()
    tensors, _ = attention_tensors(plan, Options(values=values, **choices), layer, Sample(x, x))  # type: ignore[arg-type]
    mix = plain_mix(plan.keys)
    if choices.get("mix") != "none" and plan.keys.groups > 1:
        mix = principal_mix(plan.keys, layer.q * layer.input_norm, layer.k * layer.input_norm, x)
    expected = by_definition(layer, plan.keys, mix, x)
    error = (converted(plan, tensors, x) - expected).norm() / expected.norm()
    assert error < (1e-5 if values == "exact" else 5e-3)  # the constant's place is 20 times as long as the values


def test_one_key_head_is_llamas_attention() -> None:
    config = source(groups=1)
    plan, layer, x = make_plan(config, Options()), random_layer(config), inputs()
    tensors, _ = attention_tensors(plan, Options(), layer, Sample(x, x))
    expected = layer.attend(x * layer.input_norm, llama_rotation(config, x.shape[1]))
    torch.testing.assert_close(converted(plan, tensors, x), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("values", ["exact", "constant"])
def test_biases_are_exact_where_the_constant_is(values: str) -> None:
    config = source(groups=1, bias=True)
    options = Options(values=values, slow_angle=3.0)  # type: ignore[arg-type]
    plan, layer, x = make_plan(config, options), random_layer(config), inputs()
    tensors, one = attention_tensors(plan, options, layer, Sample(x, x))
    assert one is not None and one.worst_error < 1e-3
    expected = by_definition(layer, plan.keys, plain_mix(plan.keys), x)
    error = (converted(plan, tensors, x) - expected).norm() / expected.norm()
    assert error < 5e-3


def test_mixing_heads_changes_no_score_before_the_rotation() -> None:
    config = source()
    layout, layer = make_plan(config, Options(rope_width=48)).keys, random_layer(config)
    generator = torch.Generator().manual_seed(3)
    mix = torch.complex(*torch.randn(2, layout.rotated, 3, 3, generator=generator, dtype=torch.float64))
    keys = split_keys(layout, mix, layer.q, layer.k)
    got = torch.einsum("hrd,re->hde", keys.queries[:, layout.nope :], keys.rope) / layout.query_scale
    k = layer.k.view(3, 8, HIDDEN).repeat_interleave(2, 0)
    torch.testing.assert_close(got, torch.einsum("hrd,hre->hde", layer.q.view(6, 8, HIDDEN), k), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("groups", "width", "slow"), [(3, 24, None), (3, 32, None), (3, 48, 2.0), (1, 8, 2.0), (4, 16, None)]
)
def test_the_first_component_has_the_frequencies_of_the_source(groups: int, width: int, slow: float | None) -> None:
    config = source(heads=2 * groups, groups=groups)
    plan = make_plan(config, Options(rope_width=width, slow_angle=slow))
    layout, places = plan.keys, plan.keys.places()
    assert len(set(places.flatten().tolist())) == places.numel()  # no two components share a place
    ladder = inverse_frequencies(plan.config).double()
    wanted = 1000.0 ** (-torch.arange(layout.rotated, dtype=torch.float64) / 4)
    torch.testing.assert_close(ladder[places[:, 0]], wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        layout.frequencies()[: layout.rotated, : layout.placed], ladder[places], rtol=1e-6, atol=0
    )
    assert not layout.frequencies()[layout.rotated :].any()


def test_the_other_components_are_next_to_it() -> None:
    assert make_plan(source(), Options()).keys.places().tolist()[:2] == [[0, 1, 2], [3, 4, 5]]
    assert make_plan(source(), Options(rope_width=32)).keys.places().tolist()[:2] == [[0, 1, 2], [4, 5, 3]]
    assert make_plan(source(), Options(rope_width=48)).keys.places().tolist()[:2] == [[0, 1, 2], [6, 7, 5]]


def test_principal_components_put_what_matters_into_the_exact_place() -> None:
    """Three key heads that are multiples of one: with it in the exact place nothing is lost at the smallest R."""
    config = source()
    layer = random_layer(config)
    k = complex_rows(layer.k, 8)
    factors = torch.tensor([1.0, 2j, -0.5])
    alike = LlamaLayer(**(vars(layer) | {"k": real_rows(factors[:, None, None] * k[:1]).flatten(0, 1)}))
    x = inputs()
    expected = alike.attend(x * alike.input_norm, llama_rotation(config, x.shape[1]))
    errors = {}
    for mix in ("principal", "none"):
        options = Options(mix=mix)  # type: ignore[arg-type]
        plan = make_plan(config, options)
        tensors, _ = attention_tensors(plan, options, alike, Sample(x, x))
        errors[mix] = float((converted(plan, tensors, x) - expected).norm() / expected.norm())
    assert errors["principal"] < 1e-5 and errors["none"] > 0.01
