"""python -m fathom.demo.*: the official flags, one line for errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fathom.checkpoint.writer import save_model
from fathom.config import ModelConfig
from fathom.demo import convert, fp8_cast_bf16
from fathom.kernels.reference import dequantize_blocks
from fathom.model.transformer import DeepseekV3

CONFIG = ModelConfig(
    vocab_size=256, hidden_size=256, intermediate_size=512, moe_intermediate_size=256, num_hidden_layers=2,
    num_nextn_predict_layers=1, num_attention_heads=4, n_routed_experts=8, num_experts_per_tok=2, n_group=4,
    topk_group=2, first_k_dense_replace=1, q_lora_rank=128, kv_lora_rank=128, qk_nope_head_dim=64,
    qk_rope_head_dim=64, v_head_dim=64, max_position_embeddings=128,
)  # fmt: skip


@pytest.fixture
def fp8(tmp_path: Path) -> Path:
    model = DeepseekV3(CONFIG, dtype=torch.bfloat16).init_weights(torch.Generator().manual_seed(0))
    save_model(model, tmp_path / "fp8", dtype="fp8")
    (tmp_path / "fp8" / "tokenizer.json").write_text("{}")
    return tmp_path / "fp8"


def test_convert(fp8: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--hf-ckpt-path",
        str(fp8),
        "--save-path",
        str(tmp_path / "d"),
        "--n-experts",
        "8",
        "--model-parallel",
        "2",
    ]
    assert convert.main(flags) == 0
    ranks = [load_file(tmp_path / "d" / f"model{r}-mp2.safetensors") for r in range(2)]
    whole = load_file(fp8 / "model.safetensors")
    joined = torch.cat([r["layers.0.attn.wo.weight"].view(torch.uint8) for r in ranks], 1)
    assert torch.equal(joined, whole["model.layers.0.self_attn.o_proj.weight"].view(torch.uint8))
    assert "layers.1.ffn.experts.3.w1.scale" in ranks[0] and "layers.1.ffn.experts.4.w1.scale" in ranks[1]
    assert not any(name.startswith("layers.2.") for name in ranks[0])
    assert (tmp_path / "d" / "tokenizer.json").exists()
    assert "2 files" in capsys.readouterr().out
    assert convert.main([*flags[:2], "--save-path", str(tmp_path / "m"), *flags[4:], "--mtp"]) == 0
    assert any(name.startswith("layers.2.") for name in load_file(tmp_path / "m" / "model0-mp2.safetensors"))


def test_wrong_number_of_experts(fp8: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--hf-ckpt-path",
        str(fp8),
        "--save-path",
        str(tmp_path / "d"),
        "--n-experts",
        "9",
        "--model-parallel",
        "3",
    ]
    assert convert.main(flags) == 2
    assert capsys.readouterr().err.startswith("fathom: error: --n-experts is 9, the config of")
    assert not (tmp_path / "d").exists()


def test_fp8_cast_bf16(fp8: Path, tmp_path: Path) -> None:
    assert fp8_cast_bf16.main(["--input-fp8-hf-path", str(fp8), "--output-bf16-hf-path", str(tmp_path / "b")]) == 0
    before, after = load_file(fp8 / "model.safetensors"), load_file(tmp_path / "b" / "model.safetensors")
    assert set(after) == {name for name in before if not name.endswith("_scale_inv")}
    name = "model.layers.1.mlp.experts.5.up_proj.weight"
    assert torch.equal(after[name], dequantize_blocks(before[name], before[name + "_scale_inv"], dtype=torch.bfloat16))


def test_missing_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--input-fp8-hf-path", str(tmp_path / "no"), "--output-bf16-hf-path", str(tmp_path / "b")]
    assert fp8_cast_bf16.main(flags) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_flags_are_the_official_ones() -> None:
    for main in (convert.main, fp8_cast_bf16.main):
        with pytest.raises(SystemExit) as caught:
            main(["--unknown", "1"])
        assert caught.value.code == 2
