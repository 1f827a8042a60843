"""Chosen parts train: they move as they would alone, everything else keeps its bits, and no work is done for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import make_config, make_data, make_model

from fathom.checkpoint.reader import load_model
from fathom.checkpoint.store_reader import Reader
from fathom.checkpoint.writer import save_model
from fathom.model.transformer import DeepseekV3
from fathom.runtime import UserError
from fathom.train.config import TrainConfig
from fathom.train.export import export_run
from fathom.train.loop import Trainer
from fathom.train.objective import Weights
from fathom.train.pretrain import start_model
from fathom.train.selection import part_of, trains


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A checkpoint to start from, with router biases that are not zero."""
    torch.set_num_threads(1)
    model = make_model(make_config("unused"))
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.linspace(-0.1, 0.1, len(buffer)))
    folder = tmp_path_factory.mktemp("start") / "model"
    save_model(model, folder, dtype="fp32", side_files_from=tokenizer_folder)
    return folder


def config_of(out: Path, start: Path, tokenizer: Path, **changes: Any) -> TrainConfig:
    given = {"run.init_from": str(start), "run.steps": 4, "run.checkpoint_every": 2, "data.tokenizer": str(tokenizer)}
    return make_config(out, given | changes)


def trained(config: TrainConfig) -> Trainer:
    trainer = Trainer(config, start_model(config), make_data(config))
    trainer.train()
    return trainer


def state(model: DeepseekV3) -> dict[str, torch.Tensor]:
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


def moved(name: str, parts: list[str]) -> bool:
    """Whether a tensor of the model's state may move: biases move with their gate."""
    return trains(name.replace(".e_score_correction_bias", ".weight"), parts)


@pytest.mark.parametrize(
    "parts", [["mtp"], ["experts"], ["router"], ["norms", "embedding"], ["experts", "mtp"]], ids=str
)
def test_only_they_move(tmp_path: Path, start: Path, tokenizer_folder: Path, parts: list[str]) -> None:
    config = config_of(tmp_path / "run", start, tokenizer_folder, **{"run.train": parts})
    trainer = trained(config)
    before, after = state(load_model(start)), state(trainer.model)
    assert before.keys() == after.keys()
    for name, value in after.items():
        assert torch.equal(value, before[name]) != moved(name, parts), name
    assert all((p.grad is not None) == trains(n, parts) for n, p in trainer.model.named_parameters())


def test_the_gradient_is_that_of_the_whole(tmp_path: Path, start: Path, tokenizer_folder: Path) -> None:
    """Freezing changes what is computed, not what comes out."""
    grads: list[dict[str, torch.Tensor]] = []
    for parts in (["all"], ["experts", "router"]):
        config = config_of(tmp_path / parts[0], start, tokenizer_folder, **{"run.train": parts})
        trainer = Trainer(config, start_model(config), make_data(config))
        batch = make_data(config).batch(0)
        trainer.parts.forward_backward(batch, Weights(batch.labels.numel(), len(batch.tokens), 0.3, 0.01))
        grads.append({n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None})
    chosen = [name for name in grads[0] if part_of(name) in ("experts", "router")]
    assert chosen == list(grads[1])
    for name in chosen:
        assert (grads[1][name] - grads[0][name]).norm() < 1e-5 * grads[0][
            name
        ].norm()  # norms of frozen layers: other sums


def test_checkpoints_hold_what_trains_and_exports_the_whole(
    tmp_path: Path, start: Path, tokenizer_folder: Path
) -> None:
    config = config_of(tmp_path / "run", start, tokenizer_folder, **{"run.train": ["experts", "router"]})
    trainer = trained(config)
    with Reader(tmp_path / "run" / "checkpoints" / "step-00000004") as reader:
        kinds = {part_of(name.removeprefix("model.")) for name in reader.tensors if name.startswith("model.")}
        assert kinds == {"experts", "router"} and not any("self_attn" in name for name in reader.tensors)
        assert {n for n in reader.tensors if n.startswith("router_bias")} == {"router_bias.0", "router_bias.1"}
    export_run(tmp_path / "run", tmp_path / "export", dtype="fp32")
    shipped, live = state(load_model(tmp_path / "export")), state(trainer.model)
    assert all(torch.equal(shipped[name], live[name]) for name in live)


def test_a_base_stored_in_fp8(tmp_path: Path, start: Path, tokenizer_folder: Path) -> None:
    """Frozen tensors come dequantised from the file, as the run itself read them."""
    save_model(load_model(start), tmp_path / "fp8", dtype="fp8", side_files_from=tokenizer_folder)
    trainer = trained(config_of(tmp_path / "run", tmp_path / "fp8", tokenizer_folder, **{"run.train": ["mtp"]}))
    export_run(tmp_path / "run", tmp_path / "export", dtype="fp32")
    shipped, live = state(load_model(tmp_path / "export")), state(trainer.model)
    assert all(torch.equal(shipped[name], live[name]) for name in live)


def test_it_resumes_bit_for_bit_and_refuses_another_base(tmp_path: Path, start: Path, tokenizer_folder: Path) -> None:
    how = {"run.train": ["router", "mtp"]}
    whole = trained(config_of(tmp_path / "whole", start, tokenizer_folder, **how))
    base = tmp_path / "base"
    save_model(load_model(start), base, dtype="fp32", side_files_from=tokenizer_folder)
    config = config_of(tmp_path / "run", base, tokenizer_folder, **how)
    first = Trainer(config, start_model(config), make_data(config))
    first.step(), first.step()
    first.store.wait()
    second = trained(config)  # goes on from step 2
    assert second.step_done == 4
    assert all(
        torch.equal(a, b) for a, b in zip(state(whole.model).values(), state(second.model).values(), strict=True)
    )
    other = load_model(base)
    with torch.no_grad():
        other.norm.weight.mul_(2)
    save_model(other, base, dtype="fp32", side_files_from=tokenizer_folder, overwrite=True)
    with pytest.raises(UserError, match="has changed since"):
        export_run(tmp_path / "run", tmp_path / "export", dtype="fp32")
    with pytest.raises(UserError, match="has changed since"):
        trained(config_of(tmp_path / "run", base, tokenizer_folder, **how, **{"run.steps": 4}))


def test_mtp_for_a_model_that_had_none(tmp_path: Path, tokenizer_folder: Path) -> None:
    plain = make_model(make_config("unused", num_nextn_predict_layers=0))
    save_model(plain, tmp_path / "plain", dtype="fp32", side_files_from=tokenizer_folder)
    recipe = {"data": {"batch_rows": 8, "micro_rows": 4, "sequence_length": 16, "tokenizer": str(tokenizer_folder)}}
    recipe |= {
        "run": {"out": str(tmp_path / "run"), "steps": 2, "init_from": str(tmp_path / "plain"), "train": ["mtp"]}
    }
    config = TrainConfig.from_dict(recipe | {"model": {"num_nextn_predict_layers": 1}})
    trainer = trained(config)
    export_run(tmp_path / "run", tmp_path / "export", dtype="fp32")
    shipped = load_model(tmp_path / "export")
    assert shipped.config.num_nextn_predict_layers == 1
    assert all(torch.equal(a, b) for a, b in zip(state(shipped).values(), state(trainer.model).values(), strict=True))
    assert all(torch.equal(state(shipped)[n], t) for n, t in state(plain).items())
    recipe["run"]["train"] = ["experts"]
    with pytest.raises(UserError, match=r"num_nextn_predict_layers is 1, run\.init_from has 0"):
        start_model(TrainConfig.from_dict(recipe | {"model": {"num_nextn_predict_layers": 1}}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run.train": ["all", "mtp"]}, "stands alone"),
        ({"run.train": []}, "one or more of all, experts"),
        ({"run.train": ["heads"]}, "one or more of all, experts"),
        ({"run.train": ["mtp"], "run.init_from": ""}, "run.init_from is empty"),
        ({"run.train": ["mtp"], "parallel.pipeline": 2}, "parallel.pipeline 2 trains whole models only"),
        ({"run.train": ["mtp"], "parallel.sharding": "fsdp2"}, "fsdp2"),
        ({"run.train": ["lora"]}, "lora.rank is 0"),
        ({"lora.rank": 4}, "adapters want"),
        ({"lora.alpha": 4.0}, "no effect in a run without lora.rank"),
    ],
)
def test_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_config(tmp_path, {"run.init_from": "somewhere"} | changes)
