"""NaN and infinite values: refused at load, listed by a deep inspection, and never a passed check."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from checkpoint_models import TINY_V3, make_model
from safetensors.torch import load_file, save_file
from torch import Tensor

import fathom.engine.selfcheck as selfcheck
from fathom.checkpoint.finite import not_finite
from fathom.checkpoint.inspect import inspect
from fathom.checkpoint.reader import load_model
from fathom.checkpoint.writer import save_model
from fathom.commands import inspect as command
from fathom.runtime import UserError

O_PROJ, EXPERT = "model.layers.1.self_attn.o_proj.weight", "model.layers.2.mlp.experts.3.down_proj.weight"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 17, 4098])
def test_one_value_is_found_wherever_it_is(dtype: torch.dtype, bad: float, place: int) -> None:
    values = torch.randn(3, 1367).to(dtype)
    assert not_finite(values) == 0
    values.view(-1)[place] = bad
    assert not_finite(values) == 1
    values[2] = bad
    assert not_finite(values) == 1367 + (place < 2 * 1367)


def test_fp8_has_two_codes_that_are_no_numbers() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(16, 16).view(torch.float8_e4m3fn)
    assert not_finite(codes) == 2 == int(codes.float().isnan().sum())
    assert not_finite(torch.zeros(0, 4)) == 0


def damage(folder: Path, name: str, code: int | None = None) -> None:
    content: dict[str, Tensor] = load_file(folder / "model.safetensors")
    if code is None:
        content[name].view(-1)[5:8] = math.nan
    else:
        content[name].view(torch.uint8).view(-1)[5] = code
    save_file(content, folder / "model.safetensors")


@pytest.mark.parametrize("load_as", ["auto", "fp8", "float32"])
@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_fp8_codes_are_refused_at_load(tmp_path: Path, load_as: str, code: int) -> None:
    save_model(make_model(TINY_V3), tmp_path, dtype="fp8")
    load_model(tmp_path, load_as)
    damage(tmp_path, EXPERT, code)
    with pytest.raises(UserError, match=rf"{EXPERT} holds NaN or infinite values \(1 of"):
        load_model(tmp_path, load_as)


def test_values_and_scales_are_refused_at_load(tmp_path: Path) -> None:
    save_model(make_model(TINY_V3), tmp_path / "bf16")
    damage(tmp_path / "bf16", O_PROJ)
    with pytest.raises(UserError, match=rf"{O_PROJ} holds NaN or infinite values \(3 of"):
        load_model(tmp_path / "bf16")
    save_model(make_model(TINY_V3), tmp_path / "fp8", dtype="fp8")
    content = load_file(tmp_path / "fp8/model.safetensors")
    content[f"{O_PROJ}_scale_inv"][0, 0] = math.inf
    save_file(content, tmp_path / "fp8/model.safetensors")
    for dtype in ("auto", "fp8"):
        with pytest.raises(UserError, match=f"{O_PROJ}_scale_inv holds a NaN, infinite"):
            load_model(tmp_path / "fp8", dtype)


def test_a_deep_inspection_lists_them_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(make_model(TINY_V3), tmp_path, dtype="fp8")
    assert not inspect(tmp_path, deep=True).problems
    damage(tmp_path, EXPERT, 0x7F)
    damage(tmp_path, "model.norm.weight")
    assert not inspect(tmp_path).problems
    assert sorted(inspect(tmp_path, deep=True).problems) == [
        f"{EXPERT} holds 1 NaN or infinite values of 10,368",
        "model.norm.weight holds 3 NaN or infinite values of 144",
    ]
    assert command.run(command.Args(str(tmp_path), deep=True)) == 1
    assert "2 problems" in capsys.readouterr().out


def test_logits_that_are_no_numbers_never_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(TINY_V3, dtype=torch.float32).eval()
    logits = torch.zeros(8, TINY_V3.vocab_size)
    logits[3, 4] = math.nan
    monkeypatch.setattr(selfcheck, "paged_logits", lambda *_, **__: logits)
    with torch.no_grad():
        difference = selfcheck.compare(None, model, [list(range(8))])  # type: ignore[arg-type]
    assert difference.largest == difference.typical == math.inf
