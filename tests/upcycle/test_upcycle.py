"""Whole conversions of tiny models, against transformers: the original's logits where the conversion is exact, and
DeepseekV3ForCausalLM on the folder that was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from llama_files import tiny, write_folder
from torch import Tensor

import fathom
from fathom.checkpoint.inspect import inspect
from fathom.config import ModelConfig
from fathom.runtime import UserError
from fathom.text.tokenizer import Tokenizer
from fathom.upcycle import upcycle as module
from fathom.upcycle.llama import Llama
from fathom.upcycle.open import open_source
from fathom.upcycle.options import Options, make_plan
from fathom.upcycle.report import Report
from fathom.upcycle.upcycle import upcycle

SMALL: dict[str, Any] = {"rms_norm_eps": 1e-9}  # below the latent norm's: see latent.py on eps
IDS = torch.randint(0, 320, (2, 60), generator=torch.Generator().manual_seed(0))


def convert(folder: Path, model: Any, destination: Path, **choices: Any) -> Report:
    source = open_source(write_folder(folder, model))
    try:
        return upcycle(source, destination, Options(**({"to": "fp32"} | choices)))
    finally:
        source.close()


@torch.no_grad()
def ours(folder: Path) -> Tensor:
    return fathom.load_model(folder, "float32", "cpu")(IDS)


@torch.no_grad()
def theirs(model: Any) -> Tensor:
    return model(IDS).logits


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_the_plain_llama_computes_what_transformers_computes(tmp_path: Path, kind: str) -> None:
    model = tiny(kind)
    source = open_source(write_folder(tmp_path / "a", model))
    torch.testing.assert_close(Llama.load(source).logits(IDS), theirs(model), rtol=1e-4, atol=1e-4)
    alone = Llama.load(source).hidden(IDS[:, 30:])
    both = Llama.load(source).hidden(IDS, segments=(torch.arange(60) >= 30).long().expand(2, -1))
    turned = both[:, 30:]  # scores see differences of positions only
    torch.testing.assert_close(turned, alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize(
    "choices",
    [{}, {"ffn": "dense"}, {"ffn": "grown", "mtp": 1}, {"dense_layers": 0, "experts": 4}],
)
def test_one_key_head_is_exact(tmp_path: Path, kind: str, choices: dict[str, Any]) -> None:
    model = tiny(kind, num_key_value_heads=1, tie_word_embeddings=kind == "llama", **SMALL)
    report = convert(tmp_path / "a", model, tmp_path / "b", **choices)
    torch.testing.assert_close(ours(tmp_path / "b"), theirs(model), rtol=1e-4, atol=2e-5)
    assert report.comparison is not None and report.comparison.divergence < 1e-6
    assert report.comparison.original == pytest.approx(report.comparison.result, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "choices"),
    [
        ("llama", {"ffn": "grown", "mtp": 1}),
        ("mistral", {"ffn": "dense", "values": "constant"}),
        ("qwen2", {"ffn": "sparse", "dense_layers": 0, "slow_angle": 1.0}),
    ],
)
def test_transformers_loads_the_result_and_says_the_same(tmp_path: Path, kind: str, choices: dict[str, Any]) -> None:
    convert(tmp_path / "a", tiny(kind), tmp_path / "b", **choices)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b", dtype=torch.float32)
    assert type(model).__name__ == "DeepseekV3ForCausalLM"
    torch.testing.assert_close(ours(tmp_path / "b"), theirs(model), rtol=1e-4, atol=1e-4)


def test_several_key_heads_are_near_and_nearer_with_a_wider_key(tmp_path: Path) -> None:
    """Random weights put as much into every component: real models lose far less."""
    model = tiny(num_key_value_heads=2, **SMALL)
    divergences = []
    for width in (32, 64, 512):
        report = convert(tmp_path / "a", model, tmp_path / f"b{width}", ffn="dense", rope_width=width)
        assert report.comparison is not None
        divergences.append(report.comparison.divergence)
    assert divergences[0] > divergences[1] > 2 * divergences[2]


def test_grown_experts_change_no_bit_until_they_are_trained(tmp_path: Path) -> None:
    model = tiny()
    convert(tmp_path / "a", model, tmp_path / "dense", ffn="dense")
    convert(tmp_path / "a", model, tmp_path / "grown", ffn="grown", dense_layers=0)
    assert torch.equal(ours(tmp_path / "dense"), ours(tmp_path / "grown"))
    grown = fathom.load_model(tmp_path / "grown", "float32", "cpu")
    record: list[Any] = []
    ids = torch.tensor(Tokenizer.from_pretrained(tmp_path / "grown").encode_plain("the quick brown fox " * 30))
    with torch.no_grad():
        grown.hidden(ids[None, :120], record=record)
    for routing in record:  # tokens spread
        assert routing.indices.unique().numel() >= 6
    assert all(experts.gate_up.abs().sum() > 0 for experts in (layer.mlp.experts for layer in grown.layers))


def test_the_mtp_layer_sees_the_last_blocks_output(tmp_path: Path) -> None:
    convert(tmp_path / "a", tiny(), tmp_path / "b", mtp=1)
    model = fathom.load_model(tmp_path / "b", "float32", "cpu")
    seen: list[Tensor] = []
    model.layers[-1].register_forward_hook(lambda module, args, out: seen.append(out))
    model.mtp[0].block.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        assert model.mtp_logits(IDS).isfinite().all()
    after, before = seen[0][:, :-1], seen[1]
    cosine = torch.nn.functional.cosine_similarity(after, before, dim=-1)
    length = before.norm(dim=-1) / after.norm(dim=-1)
    assert cosine.min() > 0.99 and length.min() > 0.5 and length.max() < 2


def test_what_the_folder_holds(tmp_path: Path) -> None:
    convert(tmp_path / "a", tiny(tie_word_embeddings=True), tmp_path / "b", ffn="grown", mtp=1, to="bf16")
    report = inspect(tmp_path / "b")
    assert not report.problems and report.mtp_layers == 1
    config = ModelConfig.from_pretrained(tmp_path / "b")
    assert (config.model_type, config.scoring_func, config.topk_method) == ("deepseek_v3", "sigmoid", "noaux_tc")
    assert config.tie_word_embeddings and config.torch_dtype == "bfloat16" and config.eos_token_id == (2,)
    notice = (tmp_path / "b" / "NOTICE").read_text()
    assert "sha256" in notice and "multi-head latent attention" in notice and "untrained" in notice
    names = {path.name for path in (tmp_path / "b").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "model.safetensors", "config.json", "NOTICE"} <= names
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_result_answers_and_is_converted_to_fp8_and_back(tmp_path: Path) -> None:
    from fathom.checkpoint.convert import convert as change
    from fathom.checkpoint.plan import Options as To

    convert(tmp_path / "a", tiny(), tmp_path / "b", ffn="grown", mtp=1, to="bf16")
    convert(tmp_path / "a", tiny(), tmp_path / "fp8", ffn="grown", mtp=1, to="fp8")
    change(tmp_path / "b", tmp_path / "c", To("fp8"))
    assert (tmp_path / "c" / "model.safetensors").read_bytes() == (tmp_path / "fp8" / "model.safetensors").read_bytes()
    change(tmp_path / "c", tmp_path / "d", To("bf16"), verify=True)
    settings = fathom.SamplingParams(temperature=0, max_tokens=8)
    answers = [
        fathom.LLM(tmp_path / name, dtype="float32").generate(["the quick brown"], settings)[0].outputs[0].token_ids
        for name in ("b", "d")
    ]
    assert all(len(answer) > 0 for answer in answers)


def test_constant_values_and_biases_say_how_far_off_they_are(tmp_path: Path) -> None:
    exact = convert(tmp_path / "a", tiny("qwen2", num_key_value_heads=1), tmp_path / "b")
    plain = convert(tmp_path / "c", tiny("llama", num_key_value_heads=1), tmp_path / "d", values="constant")
    for report in (exact, plain):
        assert report.constant_error is not None and report.constant_worst is not None
        assert 0 < report.constant_error < report.constant_worst
        assert report.comparison is not None and report.comparison.divergence > 0


def test_values_are_chosen_by_the_cache_they_cost(tmp_path: Path) -> None:
    config = open_source(write_folder(tmp_path / "a", tiny())).config
    assert make_plan(config, Options()).values == "exact"
    llama_1b = {
        "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 64, "intermediate_size": 8192,
    }  # fmt: skip
    plan = make_plan(type(config)(**(vars(config) | llama_1b)), Options())
    assert plan.values == "constant"
    assert plan.config.kv_lora_rank == 576  # 512 values and the constant, up to a multiple of 64
    smol = {**llama_1b, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
    plan = make_plan(type(config)(**(vars(config) | smol | {"intermediate_size": 1536})), Options())
    assert (plan.values, plan.config.kv_lora_rank, plan.config.qk_rope_head_dim) == ("exact", 576, 192)
    assert plan.config.qk_head_dim == 256


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = module._Layers.make

    def fail(self: Any, key: int | str) -> dict[str, Tensor]:
        if key == 1:
            raise RuntimeError("the power went out")
        return made(self, key)

    monkeypatch.setattr(module._Layers, "make", fail)
    with pytest.raises(RuntimeError, match="power"):
        convert(tmp_path / "a", tiny(), tmp_path / "out" / "b")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".b.xyz.part"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    convert(tmp_path / "a", tiny(), tmp_path / "b", verify=False)
    assert not left.exists() and json.loads((tmp_path / "b" / "config.json").read_text())["hidden_size"] == 64


def test_a_shared_head_can_be_written_apart(tmp_path: Path) -> None:
    model = tiny(num_key_value_heads=1, tie_word_embeddings=True, **SMALL)
    convert(tmp_path / "a", model, tmp_path / "b", untie=True)
    assert not ModelConfig.from_pretrained(tmp_path / "b").tie_word_embeddings
    torch.testing.assert_close(ours(tmp_path / "b"), theirs(model), rtol=1e-4, atol=2e-5)


def test_an_existing_destination_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match="exists already"):
        convert(tmp_path / "a", tiny(), tmp_path / "b")
