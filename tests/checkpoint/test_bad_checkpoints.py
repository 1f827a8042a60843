"""A table of damaged and foreign checkpoints: each is one clear line, for loading and converting alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_models import TINY_V3, make_model
from safetensors.torch import load_file, save_file

from fathom.checkpoint.convert import convert
from fathom.checkpoint.inspect import inspect
from fathom.checkpoint.plan import Options
from fathom.checkpoint.reader import load_model
from fathom.checkpoint.writer import save_model
from fathom.models.resolve import resolve
from fathom.runtime import UserError

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = "model-00002-of-00006.safetensors"
Q_A = "model.layers.1.self_attn.q_a_proj.weight"
EXPERT = "model.layers.2.mlp.experts.7.down_proj.weight"


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_model(make_model(TINY_V3), folder / "fp8", dtype="fp8")
    save_model(make_model(TINY_V3), folder / "bf16", dtype="bf16")
    save_model(make_model(TINY_V3), folder / "shards", dtype="bf16", max_shard_bytes=500_000)
    assert (folder / "shards" / SHARD).exists()
    return folder


def tensors(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = load_file(folder / ONE)
        edit(content)
        save_file(content, folder / ONE)

    return apply


def config(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps({k: v for k, v in data.items() if v is not ...}))

    return apply


def index(edit: Callable[[dict[str, str]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = json.loads((folder / INDEX).read_text())
        edit(data["weight_map"])
        (folder / INDEX).write_text(json.dumps(data))

    return apply


def truncate(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def duplicate(folder: Path) -> None:
    other = load_file(folder / SHARD)
    name, tensor = next(iter(other.items()))
    path = folder / "model-00001-of-00006.safetensors"
    save_file(load_file(path) | {name: tensor}, path)


def renumbered(folder: Path) -> None:
    """model-2-of-12 ... model-12-of-12 without an index; the first one is not there."""
    (folder / INDEX).unlink()
    shards = sorted(folder.glob("*.safetensors"))
    for number, path in enumerate(shards, 2):
        path.rename(folder / f"model-{number}-of-12.safetensors")
    for number in range(2 + len(shards), 13):
        save_file({f"more.{number}": torch.ones(1)}, folder / f"model-{number}-of-12.safetensors")


def packed(folder: Path) -> None:
    content = (folder / ONE).read_bytes()
    (folder / ONE).write_bytes(content.replace(b'"dtype":"BF16"', b'"dtype":"F4"  ', 1))


def set_scale(value: float) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda t: t[Q_A + "_scale_inv"].view(-1)[:1].fill_(value)


CASES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "no config": ("bf16", lambda f: (f / "config.json").unlink(), "config.json does not exist"),
    "broken config": ("bf16", lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "another architecture": (
        "bf16", config(model_type="llama", architectures=["LlamaForCausalLM"]), "this is a llama checkpoint"),
    "unknown config value": ("bf16", config(scoring_func="tanh"), "scoring_func is 'tanh'"),
    "no weights": ("bf16", lambda f: (f / ONE).unlink(), "holds no safetensors checkpoint"),
    "only a pickle": ("bf16", lambda f: (f / ONE).rename(f / "pytorch_model.bin"), "is a pickle"),
    "truncated": ("bf16", truncate(ONE), "model.safetensors is truncated"),
    "truncated shard": ("shards", truncate(SHARD), f"{SHARD} is truncated"),
    "missing shard": ("shards", lambda f: (f / SHARD).unlink(), f"1 of 6 files are missing: {SHARD}"),
    "missing shard, no index": (
        "shards", lambda f: ((f / SHARD).unlink(), (f / INDEX).unlink()), f"1 of 6 files are missing: {SHARD}"),
    "missing shard, no index, numbers without zeros": (
        "shards", renumbered, "1 of 12 files are missing: model-1-of-12.safetensors; download"),
    "broken index": ("shards", lambda f: (f / INDEX).write_text("[]"), "has no weight_map"),
    "index points to the wrong file": (
        "shards", index(lambda m: m.update({"lm_head.weight": SHARD})),
        f"puts lm_head.weight into {SHARD}, but it is in"),
    "index names a tensor nobody has": (
        "shards", index(lambda m: m.update({"ghost": SHARD})), "puts ghost into .* no file holds it"),
    "index leaves the folder": (
        "shards", index(lambda m: m.update({"lm_head.weight": "../x.safetensors"})), "not a file of its own folder"),
    "tensor in two files": ("shards", duplicate, "is in both"),
    "missing tensor": ("bf16", tensors(lambda t: t.pop(EXPERT)), f"{EXPERT} is missing"),
    "unexpected tensor": ("bf16", tensors(lambda t: t.update(extra=torch.ones(1))), "extra is unexpected"),
    "wrong shape": (
        "bf16", tensors(lambda t: t.update({Q_A: t[Q_A][1:].clone()})),
        r"has shape \[47, 144\], the config says \[48, 144\]"),
    "config of another size": ("bf16", config(num_hidden_layers=1), "is unexpected"),
    "integer weight": ("bf16", tensors(lambda t: t.update({Q_A: t[Q_A].to(torch.int8)})), "has dtype int8"),
    "missing scale": ("fp8", tensors(lambda t: t.pop(Q_A + "_scale_inv")), "scale weight_scale_inv is missing"),
    "scale without weight": ("fp8", tensors(lambda t: t.pop(EXPERT)), f"{EXPERT}_scale_inv has no weight"),
    "scale of a BF16 weight": (
        "fp8", tensors(lambda t: t.update({Q_A: t[Q_A].bfloat16()})), "is bfloat16 and yet has a scale"),
    "misshapen scale": (
        "fp8", tensors(lambda t: t.update({Q_A + "_scale_inv": torch.ones(2, 2)})),
        r"has shape \[2, 2\], blocks of 128x128 give \[1, 2\]"),
    "FP8 without quantization_config": ("fp8", config(quantization_config=...), "no quantization_config"),
    "MLX": ("bf16", config(quantization={"group_size": 64, "bits": 4}), "in MLX's format of 4 bits, which is not read"),
    "MLX, by its tensors": (
        "bf16", tensors(lambda t: t.update({Q_A: torch.zeros(48, 18, dtype=torch.uint32),
                                            Q_A.replace("weight", "scales"): torch.ones(48, 3)})),
        "in the format MLX, which is not read"),
    "NVFP4, by its config": (
        "bf16", config(quantization_config={"quant_method": "modelopt", "quant_algo": "NVFP4"}),
        r"quant_method is 'modelopt' \(NVFP4\): a format which is not read"),
    "NVFP4, by its own file": (
        "bf16", lambda f: (f / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}'),
        "the format NVFP4, which is not read"),
    "NVFP4, by its tensors": (
        "bf16", tensors(lambda t: t.update({Q_A + "_scale_2": torch.ones(())})), r"NVFP4 \(ModelOpt\), which is"),
    "GPTQ": ("bf16", tensors(lambda t: t.update({Q_A.replace("weight", "qweight"): t.pop(Q_A)})), "GPTQ or AWQ"),
    "a dtype of four bits": ("bf16", packed, "has dtype 'F4', which is not read"),
    "NaN weight": ("bf16", tensors(lambda t: t[Q_A].view(-1)[:1].fill_(float("nan"))), f"{Q_A} holds NaN or infinite"),
    "NaN scale": ("fp8", tensors(set_scale(float("nan"))), f"{Q_A}_scale_inv holds a NaN"),
    "infinite scale": ("fp8", tensors(set_scale(float("inf"))), f"{Q_A}_scale_inv holds a NaN, infinite"),
    "negative scale": ("fp8", tensors(set_scale(-1.0)), f"{Q_A}_scale_inv holds"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_checkpoint(case: str, saved: Path, tmp_path: Path) -> None:
    kind, damage, said = CASES[case]
    folder = shutil.copytree(saved / kind, tmp_path / "bad")
    damage(folder)
    for attempt in (lambda: load_model(folder), lambda: convert(folder, tmp_path / "out", Options("bf16"))):
        with pytest.raises(UserError, match=said) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out/*.safetensors")) and not list(tmp_path.glob("out/.*.tmp"))
    if "scale_inv holds" in said or "holds NaN" in said:
        return  # values, not headers
    try:
        report = inspect(folder)
    except UserError:
        return
    assert report.problems, "inspect finds from headers what loading finds"


def test_many_differences_are_one_line_of_twenty_and_a_count(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved / "bf16", tmp_path / "bad")
    tensors(lambda t: [t.pop(n) for n in list(t) if ".experts." in n])(folder)
    with pytest.raises(UserError) as caught:
        load_model(folder)
    assert str(caught.value).count(" is missing") == 20
    assert str(caught.value).endswith(f"and {3 * 8 * 3 - 20} more")


def test_names_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file; give the folder"):
        resolve(tmp_path / "file")
    with pytest.raises(UserError, match="neither a folder, a hub id"):
        resolve("nowhere")
    with pytest.raises(UserError, match="neither a folder, a hub id"):
        resolve("/no/such/folder")
    assert resolve(tmp_path) == tmp_path


def test_the_hub_refusing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def refuse(*args: object, **kwargs: object) -> str:
        raise LocalEntryNotFoundError("no network\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match="owner/name is no folder here and the hub gave: no network; check"):
        resolve("owner/name")
