"""A run that was killed, stopped or out of disk, then resumed, ends bit for bit where an uninterrupted one ends."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import STEPS, make_config, make_data, make_model, make_trainer
from torch import Tensor

from fathom.checkpoint.store import Store, read_whole
from fathom.checkpoint.store_format import read_index
from fathom.runtime import UserError
from fathom.train import config as config_module
from fathom.train.loop import Trainer


def lives(out: Path, *events: str) -> list[str]:
    script = Path(__file__).with_name("tiny_run.py")
    done = subprocess.run([sys.executable, str(script), str(out), *events], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def log(out: Path) -> list[dict[str, object]]:
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("tokens_per_second", "flops_share")} for r in records]


def steps_of(out: Path) -> list[int]:
    return Store(out / "checkpoints", None, keep=9, best="heldout").steps()


def state_of(out: Path, step: int = STEPS) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors and all else of a checkpoint; where the run lies does not count."""
    folder = out / f"checkpoints/step-{step:08d}"
    index = read_index(folder)
    assert index is not None and index.step == step
    extra = dict(index.extra)
    extra["config"]["run"].pop("out")
    return dict(read_whole(folder)), extra


def assert_same_end(out: Path, whole: Path) -> None:
    (mine, extra), (theirs, their_extra) = state_of(out), state_of(whole)
    assert mine.keys() == theirs.keys()
    different = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    assert not different
    assert extra == their_extra
    assert log(out) == log(whole)


def test_a_checkpoint_holds_all_that_matters(whole_run: Path) -> None:
    tensors, extra = state_of(whole_run)
    model = make_model(make_config(whole_run))
    weights = {n: p.shape for n, p in model.named_parameters()}
    wanted = {f"model.{n}": shape for n, shape in weights.items()}
    wanted |= {f"optim.{n}.{k}": shape for n, shape in weights.items() for k in ("m", "v")}
    wanted |= {f"router_bias.{i}": torch.Size([8]) for i in range(3)}  # two main MoE layers and the MTP module
    assert {n: t.shape for n, t in tensors.items()} == wanted
    assert all(tensors[f"router_bias.{i}"].any() for i in range(3))
    assert all(t.dtype == torch.float32 for t in tensors.values())
    assert (extra["tokens"], extra["updates"]) == (STEPS * 8 * 16, STEPS)
    assert extra["model"] == model.config.to_dict()
    assert [r["step"] for r in log(whole_run)] == list(range(1, STEPS + 1))


def test_killed_and_resumed_equals_uninterrupted(whole_run: Path, tmp_path: Path) -> None:
    out, killed, stopped = tmp_path / "run", random.randrange(3, 20), random.randrange(31, 39)
    ends = lives(out, f"kill:{killed}", "save:30", f"term:{stopped}")
    assert ends == ["-9", "-9", "130"], (killed, stopped)
    assert steps_of(out)[-1] == stopped + 1  # SIGTERM finishes its step, saves and leaves
    assert not list((out / "checkpoints").glob(".*"))  # the half-written one is cleaned up
    make_trainer(make_config(out)).train()
    assert_same_end(out, whole_run)


def test_killed_before_the_first_checkpoint(whole_run: Path, tmp_path: Path) -> None:
    """The log has no double records either."""
    out = tmp_path / "run"
    make_trainer(make_config(out))._claim_folder()
    trainer = make_trainer(make_config(out))
    torch.set_flush_denormal(True)  # as train() does
    for _ in range(3):
        trainer.step()
    with open(out / "log.jsonl", "a") as file:
        file.write('{"step": 4, "loss": {"a": 1}')  # the machine went down in the middle of a line
    make_trainer(make_config(out)).train()
    assert_same_end(out, whole_run)


def test_disk_full(whole_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    message, code = lives(out, "full:15")
    assert code == "2" and "cannot write checkpoint" in message and "step-00000020" in message and "free" in message
    assert [p.name for p in (out / "checkpoints").glob("step-*")] == ["step-00000010"] and steps_of(out) == [10]
    make_trainer(make_config(out)).train()
    assert_same_end(out, whole_run)


def test_no_room_is_known_before_writing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("fathom.runtime.disk_free", lambda path: 1000)
    trainer = make_trainer(make_config(tmp_path))
    with pytest.raises(UserError, match="free"):
        trainer.save(wait=True)
    assert not list(tmp_path.rglob("*.safetensors")) and steps_of(tmp_path) == []


def test_half_written_checkpoints_are_ignored(whole_run: Path, tmp_path: Path) -> None:
    out = copy(whole_run, tmp_path)
    for name in (".step-00000060.tmp", "step-00000070"):
        (out / "checkpoints" / name).mkdir()
        (out / "checkpoints" / name / "rank-00000.safetensors").write_bytes(b"half")
    trainer = make_trainer(make_config(out))
    trainer.train()
    assert trainer.step_done == STEPS


def test_keep_checkpoints(whole_run: Path, tmp_path: Path) -> None:
    assert steps_of(whole_run) == [40, 50]
    make_trainer(make_config(tmp_path, {"run.keep_checkpoints": 3, "run.steps": 5, "run.checkpoint_every": 1})).train()
    assert steps_of(tmp_path) == [3, 4, 5]


@pytest.mark.parametrize("file", ["rank-00000.safetensors", "rank-00000.json", "index.json"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "missing", "empty"])
def test_a_damaged_checkpoint_is_named(whole_run: Path, tmp_path: Path, file: str, damage: str) -> None:
    out = copy(whole_run, tmp_path)
    newest = out / "checkpoints" / f"step-{STEPS:08d}"
    path = newest / file
    content = path.read_bytes()
    path.write_bytes(
        {"cut": content[: len(content) // 2], "garbage": b"{}" + content[2:], "empty": b"{}"}.get(damage, b"")
    )
    if damage == "missing":
        path.unlink()
    trainer = make_trainer(make_config(out))
    if damage == "missing":  # counts as half-written
        trainer.train()
    else:
        with pytest.raises(UserError) as error:
            trainer.train()
        assert str(newest) in str(error.value) and f"remove {newest}" in str(error.value)
        shutil.rmtree(newest)
        make_trainer(make_config(out)).train()
    assert_same_end(out, whole_run)


def test_a_checkpoint_of_another_model_is_refused(whole_run: Path) -> None:
    trainer = make_trainer(make_config(whole_run, moe_intermediate_size=32))
    with pytest.raises(UserError, match="another model"):
        trainer.resume(STEPS)


@pytest.mark.parametrize(
    ("key", "value"),
    [("optim.peak_lr", 1e-3), ("run.steps", 60), ("run.steps", 49), ("optim.decay_start", 30), ("run.seed", 4),
     ("data.batch_rows", 4), ("balance.gamma", 0.0), ("data.weights", {"first": 2.0}),
     ("model.vocab_size", 256), ("precision.gemm", "bf16"), ("optim.moments", "bf16"), ("optim.kind", "muon"),
     ("balance.method", "aux"), ("data.fim_rate", 0.1)],
)  # fmt: skip
def test_another_config_is_refused(whole_run: Path, tmp_path: Path, key: str, value: object) -> None:
    out = copy(whole_run, tmp_path)
    before = (out / "config.json").read_bytes()
    with pytest.raises(UserError) as error:
        make_trainer(make_config(out, {key: value})).train()
    assert key in str(error.value) and str(out) in str(error.value) and "run.out" in str(error.value)
    assert (out / "config.json").read_bytes() == before


def test_what_may_change_between_start_and_resume(whole_run: Path, tmp_path: Path) -> None:
    out = copy(whole_run, tmp_path)
    free = {"run.checkpoint_every": 7, "run.keep_checkpoints": 1, "run.eval_every": 9, "run.log_every": 5,
            "run.eval_rows": 3, "data.train": "elsewhere.jsonl", "data.workers": 2, "precision.recompute": "block",
            "parallel.schedule": "gpipe", "parallel.dispatch": "fp32"}  # fmt: skip
    make_trainer(make_config(out, free)).train()


@pytest.mark.parametrize("content", ["[]", "{}x", '{"run": 5}', '{"speed": 1}'])
def test_a_folder_that_holds_something_else(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        make_trainer(make_config(tmp_path)).train()
    assert (tmp_path / "config.json").read_text() == content


def test_the_best_checkpoint_stays(tmp_path: Path) -> None:
    changes = {"run.steps": 4, "run.checkpoint_every": 1, "run.eval_every": 1, "run.keep_checkpoints": 1}
    config, figures = make_config(tmp_path, changes), iter([3.0, 1.0, 2.0, 2.5])
    Trainer(config, make_model(config), make_data(config), lambda nats: {"mean": next(figures)}).train()
    store = Store(tmp_path / "checkpoints", None, keep=1, best="heldout")
    assert (store.steps(), store.best()) == ([2, 4], 2)


MUON = {"optim.kind": "muon", "optim.qk_clip": 0.8, "optim.moments": "bf16"}


@pytest.mark.parametrize("change", [{"optim.ema_decay": 0.9}, {"optim.moments": "bf16"}, MUON], ids=str)
def test_all_state_survives_a_resume(tmp_path: Path, change: dict[str, Any]) -> None:
    changes = change | {"run.steps": 6, "run.checkpoint_every": 3}
    make_trainer(make_config(tmp_path / "whole", changes)).train()
    torch.set_flush_denormal(True)  # as train() does
    first = make_trainer(make_config(tmp_path / "run", changes))
    for _ in range(3):
        first.step()
    first.store.wait()
    make_trainer(make_config(tmp_path / "run", changes)).train()
    torch.set_flush_denormal(False)
    one, other = (dict(read_whole(tmp_path / name / "checkpoints" / "step-00000006")) for name in ("whole", "run"))
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_tied_embeddings_survive(tmp_path: Path) -> None:
    config = make_config(tmp_path, {"run.steps": 2}, tie_word_embeddings=True)
    first = make_trainer(config)
    first.train()
    again = make_trainer(config)
    again._claim_folder()
    assert again.step_done == 2 and again.model.lm_head.weight is again.model.embed_tokens.weight
    assert torch.equal(again.model.lm_head.weight, first.model.lm_head.weight)


def test_differences_are_dotted() -> None:
    assert config_module.differences({"a": 1, "b": {"c": 1, "d": 2}}, {"a": 1, "b": {"c": 2, "d": 2}, "e": 0}) == [
        "b.c",
        "e",
    ]


def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))
