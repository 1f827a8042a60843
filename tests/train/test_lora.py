"""Adapters: at the start they change nothing, merged they are what ran, PEFT reads what is written alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import make_config, make_data, make_model
from torch import Tensor

from fathom.checkpoint.reader import load_model
from fathom.checkpoint.store_reader import read_whole
from fathom.checkpoint.writer import save_model
from fathom.runtime import UserError
from fathom.train.config import TrainConfig
from fathom.train.export import export_run, export_run_adapters
from fathom.train.loop import Trainer
from fathom.train.pretrain import start_model

TOKENS = torch.arange(2, 34).view(2, 16)
ATTENTION = {"lora.targets": ["attention"]}
EVERYTHING = ["attention", "ffn", "experts"]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("lora") / "model"
    save_model(make_model(make_config("unused")), folder, dtype="fp32", side_files_from=tokenizer_folder)
    return folder


def config_of(out: Path, start: Path, tokenizer: Path, **changes: Any) -> TrainConfig:
    given = {
        "run.init_from": str(start), "run.steps": 4, "run.train": ["lora"], "data.tokenizer": str(tokenizer),
        "lora.rank": 3, "lora.alpha": 6.0,
    }  # fmt: skip
    return make_config(out, given | changes)


def trainer_of(config: TrainConfig) -> Trainer:
    return Trainer(config, start_model(config), make_data(config))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.eval()(TOKENS)
    return out


@pytest.mark.parametrize("targets", [["attention"], EVERYTHING], ids=str)
@pytest.mark.parametrize("gemm", ["fp32", "bf16", "fp8"])
def test_merged_is_what_ran(tmp_path: Path, start: Path, tokenizer_folder: Path, targets: list[str], gemm: str) -> None:
    config = config_of(tmp_path / "run", start, tokenizer_folder, **{"lora.targets": targets, "precision.gemm": gemm})
    trainer = trainer_of(config)
    before = logits(trainer.model)
    if gemm == "fp32":
        torch.testing.assert_close(before, logits(load_model(start)), rtol=1e-5, atol=1e-6)
    trainer.train()
    ran = logits(trainer.model)
    assert (ran - before).abs().max() > 1e-3
    assert all(("lora_" in n) == p.requires_grad for n, p in trainer.model.named_parameters())
    export_run(tmp_path / "run", tmp_path / "export", dtype="fp32")
    merged, base = load_model(tmp_path / "export"), load_model(start)
    if gemm == "fp32":
        assert (logits(merged) - ran).norm() < 1e-6 * ran.norm()
    for name, weight in merged.named_parameters():  # whatever the run computed in, the weights are the exact sum
        parts = dict(trainer.model.named_parameters())
        stem = f"{name.removesuffix('.weight')}." if name.endswith(".weight") else f"{name}_"
        wanted = base.get_parameter(name).double()
        if f"{stem}lora_A" in parts:
            wanted = wanted + 2 * parts[f"{stem}lora_B"].double() @ parts[f"{stem}lora_A"].double()
        assert (weight.double() - wanted).norm() <= 1e-6 * wanted.norm(), name


def test_which_matrices_have_adapters(tmp_path: Path, start: Path, tokenizer_folder: Path) -> None:
    trainer = trainer_of(config_of(tmp_path / "run", start, tokenizer_folder))
    names = {n.removesuffix(".lora_A") for n, _ in trainer.model.named_parameters() if n.endswith("lora_A")}
    attention = {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}
    wanted = {f"layers.{i}.self_attn.{leaf}" for i in range(3) for leaf in attention}
    ffn = ["layers.0.mlp", "layers.1.mlp.shared_experts", "layers.2.mlp.shared_experts"]
    assert names == wanted | {f"{owner}.{leaf}_proj" for owner in ffn for leaf in ("gate", "up", "down")}


def test_it_resumes_bit_for_bit(tmp_path: Path, start: Path, tokenizer_folder: Path) -> None:
    how = {"lora.targets": EVERYTHING, "run.checkpoint_every": 2}
    trainer_of(config_of(tmp_path / "whole", start, tokenizer_folder, **how)).train()
    first = trainer_of(config_of(tmp_path / "run", start, tokenizer_folder, **how))
    first.step(), first.step()
    first.store.wait()
    trainer_of(config_of(tmp_path / "run", start, tokenizer_folder, **how)).train()
    whole, run = (dict(read_whole(tmp_path / n / "checkpoints" / "step-00000004")) for n in ("whole", "run"))
    assert whole.keys() == run.keys() and all(torch.equal(run[n], t) for n, t in whole.items())


def test_adapters_alone(tmp_path: Path, start: Path, tokenizer_folder: Path) -> None:
    """What is written is what PEFT names, and it adds up to the merged weights."""
    from safetensors.torch import load_file

    trainer_of(config_of(tmp_path / "run", start, tokenizer_folder, **ATTENTION)).train()
    export_run_adapters(tmp_path / "run", tmp_path / "adapter")
    export_run(tmp_path / "run", tmp_path / "merged", dtype="fp32")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    merged, base = (load_file(folder / "model.safetensors") for folder in (tmp_path / "merged", start))
    assert len(tensors) == 2 * len(settings["target_modules"]) > 0
    for module in settings["target_modules"]:
        a, b = (tensors[f"base_model.model.{module}.lora_{letter}.weight"] for letter in "AB")
        whole = base[f"{module}.weight"] + settings["lora_alpha"] / settings["r"] * b @ a
        torch.testing.assert_close(merged[f"{module}.weight"], whole, rtol=1e-6, atol=1e-7)


def test_peft_loads_them(tmp_path: Path, start: Path, tokenizer_folder: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    trainer_of(config_of(tmp_path / "run", start, tokenizer_folder, **ATTENTION)).train()
    export_run_adapters(tmp_path / "run", tmp_path / "adapter")
    export_run(tmp_path / "run", tmp_path / "merged", dtype="fp32")
    plain = transformers.AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    ours = logits(load_model(tmp_path / "merged"))
    with torch.no_grad():
        theirs = adapted(TOKENS).logits
    assert (ours - logits(load_model(start))).abs().max() > 1e-3
    assert (theirs - ours).norm() < 1e-5 * ours.norm()


def test_what_has_no_name_in_pefts_format(tmp_path: Path, start: Path, tokenizer_folder: Path) -> None:
    trainer_of(config_of(tmp_path / "run", start, tokenizer_folder, **{"lora.targets": ["experts"]})).train()
    with pytest.raises(UserError, match="PEFT takes those of attention"):
        export_run_adapters(tmp_path / "run", tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
