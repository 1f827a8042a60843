"""The Triton kernels: results (in the interpreter, and on a GPU where there is one), and code for absent GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fathom.kernels.triton import unavailable

pytest.importorskip("triton")
CASES = Path(__file__).parent / "triton_cases.py"
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.mark.parametrize("where", ["interpreter", pytest.param("gpu", marks=GPU)])
def test_kernels_against_the_definition(where: str, tmp_path: Path) -> None:
    """All of triton_cases.py, in a process of its own: the choice is made when kernels are imported."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET" and not k.startswith("PYTEST_")}
    if where == "interpreter":
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x", "--junitxml", "cases.xml", str(CASES)]
    done = subprocess.run(
        [*command, "--rootdir", str(CASES.parents[2]), "-c", str(CASES.parents[2] / "pyproject.toml")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "<skipped" not in (tmp_path / "cases.xml").read_text()


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_products_reach_the_tensor_cores(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On sm_90 four FP8 instructions of 32 make the 128 products between two promotions; nothing is spilled."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("interpreted kernels cannot be compiled")
    from fathom.kernels.triton import build

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # compile, do not look up
    kernel = next(k for k in build.kernels() if k.name == ("fprop, dgrad to bf16" if target == "sm_90" else "wgrad"))
    row = build.compile_kernel(kernel, target)
    assert row["spilled"] == 0 and row["binary"] > 0
    if target == "sm_90":
        assert row["matrix"] == ["wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3"] and row["matrix_count"] == 4
        assert row["shared"] == 3 * 2 * 128 * 128  # three stages of two operands
    else:
        assert row["matrix"] == ["v_mfma_f32_32x32x8_f16"] and row["shared"] <= 65536


def test_reasons_why_kernels_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert unavailable() is None
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert unavailable() == "PyTorch finds no GPU here"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.version.hip", None)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (8, 0))
    assert "8.9" in (unavailable() or "")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    assert unavailable() is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "fathom-lm[gpu]" in (unavailable() or "")
