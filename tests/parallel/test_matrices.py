"""Which weights are Muon's, and how they lie in a buffer."""

from __future__ import annotations

import torch

from fathom.config import ModelConfig
from fathom.kernels.muon import CHUNK
from fathom.model.transformer import DeepseekV3
from fathom.parallel.matrices import Run, matrix_shape, runs, scale_rows
from fathom.plan.job import Job
from fathom.plan.memory import linear_parameters

MINNOW = ModelConfig.preset("minnow").replace(quantization=None)


def test_the_matrices_of_the_blocks_and_nothing_else() -> None:
    model = DeepseekV3(MINNOW, device="meta")
    shapes = {name: matrix_shape(name, p.shape) for name, p in model.named_parameters()}
    others = {name.split(".", 2)[-1] if "layers" in name else name for name, shape in shapes.items() if shape is None}
    norms = {n for n in others if n.endswith("norm.weight")}
    assert others - norms == {"embed_tokens.weight", "lm_head.weight", "mlp.gate.weight", "mtp.0.block.mlp.gate.weight"}
    muon = sum(p.numel() for name, p in model.named_parameters() if shapes[name])
    job = Job(MINNOW, 1, 8)
    assert muon == sum(linear_parameters(job, b) for b in range(MINNOW.num_hidden_layers + 1))
    assert shapes["layers.1.mlp.experts.gate_up"] == (128, 256) and shapes["layers.1.mlp.experts.down"] == (256, 128)
    assert shapes["layers.0.mlp.gate_proj.weight"] == (768, 256) and shapes["mtp.0.eh_proj.weight"] == (256, 512)
    for name, p in model.named_parameters():
        rows, columns = shapes[name] or (1, 1)
        assert p.numel() % (rows * columns) == 0


def test_equal_shapes_are_one_run() -> None:
    found = runs({"a": (0, 6), "b": (6, 12), "c": (18, 4)}, {"a": (2, 3), "b": (2, 3), "c": (2, 2)})
    assert found == [Run((2, 3), 0, 3), Run((2, 2), 18, 1)]


def test_which_matrices_a_slice_touches() -> None:
    run = Run((2, 3), start=10, count=4)  # matrices at 10, 16, 22, 28 .. 34
    touched: dict[tuple[int, int], list[int]] = {
        (0, 10): [],
        (0, 11): [0],
        (16, 22): [1],
        (15, 23): [0, 1, 2],
        (33, 99): [3],
        (34, 99): [],
        (0, 99): [0, 1, 2, 3],
    }
    for (first, last), wanted in touched.items():
        assert [i for low, high in run.within(first, last) for i in range(low, high)] == wanted, (first, last)
    large = Run((1, CHUNK), 0, 3)
    assert list(large.within(0, 3 * CHUNK)) == [(0, 1), (1, 2), (2, 3)]


def test_rows_are_scaled_in_any_slice() -> None:
    weight, factors = torch.randn(5, 3), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    wanted = (weight * factors[:, None]).view(-1)
    for cut in (0, 1, 7, 15):
        flat = weight.clone().view(-1)
        scale_rows(flat[:cut], 0, 3, factors)
        scale_rows(flat[cut:], cut, 3, factors)
        assert torch.equal(flat, wanted)
