"""The sparse split: balanced clusters, and a router that finds experts which have their own tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from test_attention import random_layer, source

from fathom.upcycle.feed_forward import Experts
from fathom.upcycle.llama import LlamaLayer
from fathom.upcycle.sparse import balanced_clusters, sparse


def test_clusters_are_of_one_size_and_find_the_groups() -> None:
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(40) % 4
    points = F.normalize(torch.eye(4)[group] + 0.05 * torch.randn(40, 4, generator=generator), dim=1)
    members = balanced_clusters(points, 4, generator)
    assert sorted(members.flatten().tolist()) == list(range(40)) and members.shape == (4, 10)
    assert all(group[row].unique().numel() == 1 for row in members)


def test_neurons_that_fire_together_become_an_expert_and_the_router_finds_it() -> None:
    """Ten kinds of tokens, each with 8 neurons of its own, and 8 neurons that all excite."""
    generator = torch.Generator().manual_seed(0)
    config = source(groups=1, intermediate_size=88)
    kind = (torch.arange(88) // 8)[torch.randperm(88, generator=generator)]  # 10: the direction that all tokens have
    directions = torch.eye(11, 48)
    gate = 3 * directions[kind] + 0.01 * torch.randn(88, 48, generator=generator)
    layer = LlamaLayer(**(vars(random_layer(config)) | {"gate": gate, "up": gate}))
    y = 2 * directions[torch.arange(200) % 10] + 2 * directions[10] + 0.05 * torch.randn(200, 48, generator=generator)
    tensors, quality = sparse(layer, Experts(routed=10, chosen=1, shared=1, width=8), y, generator)
    assert quality.right_experts > 0.95 and quality.energy_kept > 0.95
    parts = [f"mlp.experts.{e}." for e in range(10)] + ["mlp.shared_experts."]
    rows = [tensors[f"{part}gate_proj.weight"] for part in parts]
    neurons = [[int((gate - row).norm(dim=1).argmin()) for row in part] for part in rows]
    assert sorted(n for part in neurons for n in part) == list(range(88))
    assert [kind[part].unique().numel() for part in neurons] == [1] * 11
    scores = (y @ tensors["mlp.gate.weight"].T).sigmoid()
    assert (scores - 0.5).abs().max() < 0.1  # all gates stay near 1 / K

    def output(part: str) -> torch.Tensor:
        g, u, d = (tensors[f"{part}{n}_proj.weight"] for n in ("gate", "up", "down"))
        return (F.silu(y @ g.T) * (y @ u.T)) @ d.T

    whole = torch.stack([output(part) for part in parts]).sum(0)
    torch.testing.assert_close(whole, layer.feed_forward(y), rtol=1e-4, atol=1e-3)
