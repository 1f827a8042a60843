"""inspect describes a checkpoint from headers alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoint_models import EVEN_V3, TINY_V2, TINY_V3, make_model
from safetensors.torch import load_file, save_file

from fathom.checkpoint.convert import convert
from fathom.checkpoint.inspect import inspect
from fathom.checkpoint.plan import Options
from fathom.checkpoint.writer import save_model
from fathom.commands import inspect as command


def test_counts_are_the_models(tmp_path: Path) -> None:
    model = make_model(TINY_V3)
    save_model(model, tmp_path, dtype="fp8", max_shard_bytes=300_000)
    report, counted = inspect(tmp_path), model.num_parameters()
    assert (report.parameters, report.activated, report.mtp_parameters) == (
        counted.total,
        counted.activated,
        counted.mtp,
    )
    assert report.stored_parameters == counted.stored
    by_name = {part.name: part for part in report.parts}
    assert sum(p.parameters for n, p in by_name.items() if n != "MTP") == counted.total
    assert sum(p.bytes for p in report.parts) == sum(
        t.nbytes for path in tmp_path.glob("*.safetensors") for t in load_file(path).values()
    )
    assert by_name["routed experts"].parameters == 2 * 8 * 3 * 72 * 144
    assert set(by_name["gate"].dtypes) == {"BF16", "F32"} and set(by_name["attention"].dtypes) == {"F8_E4M3"}
    assert report.mtp_layers == 1 and report.mtp_copies and not report.problems and not report.notes
    assert report.bytes_on_disk == sum(p.stat().st_size for p in tmp_path.glob("*.safetensors"))


def test_reads_no_weights(tmp_path: Path) -> None:
    """Values of NaN everywhere, and a file whose data is a hole."""
    save_model(make_model(TINY_V2), tmp_path)
    path = tmp_path / "model.safetensors"
    size, header = path.stat().st_size, path.read_bytes()[:8]
    length = 8 + int.from_bytes(header, "little")
    with open(path, "r+b") as file:
        file.truncate(length)
        file.truncate(size)
    assert not inspect(tmp_path).problems


def test_demo_layout(tmp_path: Path) -> None:
    save_model(make_model(EVEN_V3), tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "d", Options("demo", model_parallel=2))
    report = inspect(tmp_path / "d")
    assert report.layout == "official demo, 2 ranks" and report.mtp_layers == 0 and not report.problems
    assert report.parameters == report.stored_parameters


def test_odd_things_are_noted(tmp_path: Path) -> None:
    save_model(make_model(TINY_V3), tmp_path, dtype="fp8")
    path = tmp_path / "model.safetensors"
    content = load_file(path)
    bias, name = "model.layers.1.mlp.gate.e_score_correction_bias", "model.layers.0.self_attn.o_proj.weight"
    content[bias] = content[bias].bfloat16()
    content[name] = content[name].bfloat16()
    del content[name + "_scale_inv"]
    save_file(content, path)
    notes = " ".join(inspect(tmp_path).notes)
    assert "1 router biases are stored as BF16" in notes and f"1 matrices are not FP8, such as {name}" in notes


def test_command_prints_a_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(make_model(TINY_V3), tmp_path, dtype="fp8", scale_fmt="ue8m0", mtp_copies=False)
    assert command.run(command.Args(str(tmp_path))) == 0
    text = capsys.readouterr().out
    for part in ("DeepSeek-V3", "routed experts", "F8_E4M3", "ue8m0", "MTP layers: 1", "stored without copies"):
        assert part in text
    assert command.run(command.Args(str(tmp_path), json=True)) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["parameters"] == make_model(TINY_V3).num_parameters().total and data["parts"][0]["name"] == "embedding"


def test_command_lists_problems_and_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(make_model(TINY_V3), tmp_path)
    content = load_file(tmp_path / "model.safetensors")
    del content["model.norm.weight"]
    content["extra"] = torch.ones(1)
    save_file(content, tmp_path / "model.safetensors")
    assert command.run(command.Args(str(tmp_path))) == 1
    text = capsys.readouterr().out
    assert "2 problems: extra is unexpected; model.norm.weight is missing" in text.replace("\n", " ")
