"""Fresh weights: the same for every layout, one stream per tensor and expert, nothing left without memory."""

from __future__ import annotations

import torch
from small_models import V3

from fathom.model.initialise import initialise, materialise
from fathom.model.transformer import DeepseekV3

CPU = torch.device("cpu")


def fresh(seed: int = 5, **changes: object) -> DeepseekV3:
    model = DeepseekV3(V3.replace(**changes), device="meta")
    materialise(model, CPU)
    initialise(dict(model.named_parameters()), model.config.initializer_range, seed)
    return model


def test_a_part_of_the_experts_is_that_part_of_the_whole() -> None:
    whole = {n: p for n, p in fresh().named_parameters() if p.dim() == 3}
    assert whole
    for name, stack in whole.items():
        part = torch.empty_like(stack[1:3])
        initialise({name: part}, fresh().config.initializer_range, 5, {name: 1})
        assert torch.equal(part, stack[1:3])
        assert not torch.equal(stack[0], stack[1])


def test_a_tensor_does_not_depend_on_the_others_but_on_the_seed() -> None:
    one, other = dict(fresh().named_parameters()), dict(fresh(num_hidden_layers=2).named_parameters())
    shared = one.keys() & other.keys() - {"norm.weight"}
    assert all(torch.equal(one[n], other[n]) for n in shared) and len(shared) > 10
    again = dict(fresh(6).named_parameters())
    assert all(not torch.equal(one[n], again[n]) for n in one if one[n].dim() > 1)


def test_values() -> None:
    model = fresh(initializer_range=0.3)
    assert not any(t.is_meta for t in [*model.parameters(), *model.buffers()])
    for name, p in model.named_parameters():
        if p.dim() == 1:
            assert torch.equal(p, torch.ones_like(p)), name
        elif p.numel() > 500:
            assert 0.25 < float(p.detach().std()) < 0.35 and abs(float(p.detach().mean())) < 0.06, name
    assert all(not b.any() and b.dtype == torch.float32 for b in model.buffers())


def test_tied_weights_stay_tied() -> None:
    model = fresh(tie_word_embeddings=True)
    assert model.lm_head.weight is model.embed_tokens.weight
