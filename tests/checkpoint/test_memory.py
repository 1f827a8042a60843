"""Peak memory, measured in a process of its own: loading holds the weights once, converting and exporting chunks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fathom.checkpoint import reader
from fathom.checkpoint.store import Store
from fathom.checkpoint.writer import save_model
from fathom.config import ModelConfig
from fathom.model.transformer import DeepseekV3
from fathom.models.resolve import resolve
from fathom.parallel.piece import Piece
from fathom.runtime import write_json
from fathom.train.config import TrainConfig
from fathom.train.export import saved_names

# About 85 M parameters, most of them experts: what a careless loader would stack twice.
CONFIG = ModelConfig(
    vocab_size=8192, hidden_size=512, intermediate_size=1024, moe_intermediate_size=512, num_hidden_layers=3,
    num_nextn_predict_layers=1, num_attention_heads=4, n_routed_experts=32, num_experts_per_tok=2, n_group=4,
    topk_group=2, first_k_dense_replace=1, q_lora_rank=128, kv_lora_rank=128, qk_nope_head_dim=64,
    qk_rope_head_dim=64, v_head_dim=64, max_position_embeddings=128,
)  # fmt: skip
LARGEST = 32 * 2 * 512 * 512 * 2  # bytes of one layer's stacked gate_up in BF16

# VmHWM and not ru_maxrss: the latter starts with the parent's peak.
MEASURE = """
import re, sys
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from fathom.checkpoint.convert import convert
from fathom.checkpoint.plan import Options
from fathom.checkpoint.reader import load_model
from fathom.kernels.reference import quantize_blocks, dequantize_blocks
from fathom.config import ModelConfig
from fathom.model.transformer import DeepseekV3
from fathom.train.export import Path, export_run
dequantize_blocks(*quantize_blocks(torch.ones(128, 128)))  # what torch loads at first use is not ours
DeepseekV3(ModelConfig.preset("minnow"), device="meta", dtype=torch.bfloat16)
peak = lambda: int(re.search(r"VmHWM: *\\t *(\\d+)", open("/proc/self/status").read())[1]) * 1024
before = peak()
{work}
print(peak() - before)
"""


def peak_of(work: str) -> int:
    """Bytes by which the peak memory of a fresh process grows."""
    root = str(Path(reader.__file__).parents[2])
    env = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    code = MEASURE.format(root=root, work=work)
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    return int(child.stdout)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    model = DeepseekV3(CONFIG, dtype=torch.bfloat16)
    block = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                block.repeat(-(-parameter.numel() // block.numel()))[: parameter.numel()].view_as(parameter)
            )
    save_model(model, folder / "bf16")
    save_model(model, folder / "fp8", dtype="fp8")
    return folder


@pytest.mark.parametrize("kind", ["bf16", "fp8"])
def test_loading_holds_the_weights_once(saved: Path, kind: str) -> None:
    weights = 2 * DeepseekV3(CONFIG, device="meta").num_parameters().with_mtp
    assert weights > 4 * LARGEST
    peak = peak_of(f"model = load_model({str(saved / kind)!r})")
    assert weights <= peak <= 1.15 * weights + LARGEST


@pytest.mark.parametrize(
    ("kind", "options"), [("fp8", "'bf16'"), ("bf16", "'fp8'"), ("fp8", "'demo', model_parallel=2"), ("fp8", "'hf'")]
)
def test_converting_holds_chunks(saved: Path, tmp_path: Path, kind: str, options: str) -> None:
    """The file is one of 90 to 180 MB; what is held does not depend on it."""
    size = (saved / kind / "model.safetensors").stat().st_size
    peak = peak_of(f"convert({str(saved / kind)!r}, {str(tmp_path / 'out')!r}, Options({options}))")
    assert peak < 48 * 2**20 < size


def test_exporting_a_training_checkpoint_holds_chunks(tmp_path: Path) -> None:
    model = DeepseekV3(CONFIG, device="meta")
    names = saved_names(model, "model")
    shapes = {names[n]: t.shape for n, t in [*model.named_parameters(), *model.named_buffers()]}
    pieces = [Piece(name, shape, 0, torch.zeros(shape.numel())) for name, shape in shapes.items()]
    store = Store(tmp_path / "checkpoints", None, keep=1)
    store.save(1, pieces, {"model": CONFIG.to_dict()}, wait=True)
    recipe = TrainConfig.from_dict({"data": {"tokenizer": str(resolve("minnow"))}})
    write_json(tmp_path / "config.json", recipe.to_dict())
    size = sum(path.stat().st_size for path in tmp_path.glob("checkpoints/*/*.safetensors"))
    peak = peak_of(f"export_run(Path({str(tmp_path)!r}), Path({str(tmp_path / 'out')!r}), dtype='fp8')")
    assert peak < 48 * 2**20 < size / 5
