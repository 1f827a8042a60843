"""Conversions that are interrupted, repeated, damaged or replaced: nothing is done twice, nothing of two is mixed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_models import EVEN_V3, TINY_V3, files, make_model
from conversions import SHARD, saved, weights

from fathom.checkpoint import convert as convert_module
from fathom.checkpoint.convert import convert
from fathom.checkpoint.plan import Options
from fathom.checkpoint.reader import load_model
from fathom.checkpoint.writer import save_model
from fathom.runtime import UserError

KILLED = """
import sys, os
sys.path.insert(0, {root!r})
import fathom.checkpoint.safetensors_io as io
from fathom.checkpoint.convert import convert
from fathom.checkpoint.plan import Options
count = 0
write = io.TensorWriter.write
def slow(self, *args):
    global count
    count += 1
    if count == {writes}:
        print("now", flush=True)
        import time; time.sleep(60)
    return write(self, *args)
io.TensorWriter.write = slow
convert({source!r}, {destination!r}, Options({to!r}))
"""


@pytest.mark.parametrize("to", ["bf16", "fp8", "demo"])
def test_killed_in_the_middle_and_resumed_gives_the_same_bytes(tmp_path: Path, to: Any) -> None:
    a = saved(tmp_path / "a", EVEN_V3, dtype="bf16" if to == "fp8" else "fp8")
    options = Options(to)
    convert(a, tmp_path / "whole", options)
    root = str(Path(convert_module.__file__).parents[2])
    code = KILLED.format(root=root, source=str(a), destination=str(tmp_path / "b"), writes=60, to=to)
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert child.stdout is not None and child.stdout.readline() == b"now\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert list((tmp_path / "b").glob(".*.tmp")), "it was killed while it wrote"
    assert not (tmp_path / "b" / "config.json").exists()
    finished = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "b").glob("*.safetensors")}
    result = convert(a, tmp_path / "b", options, verify=True)
    assert files(tmp_path / "b") == files(tmp_path / "whole")
    if to != "demo":  # one rank is one file
        assert finished and 0 < result.written < result.bytes
    assert all((tmp_path / "b" / n).stat().st_mtime_ns == t for n, t in finished.items()), "finished files are kept"


def test_running_a_finished_conversion_again_writes_nothing(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", TINY_V3)
    first = convert(a, tmp_path / "b", Options("fp8"))
    before = files(tmp_path / "b")
    again = convert(a, tmp_path / "b", Options("fp8"), verify=True)
    assert first.written == first.bytes and again.written == 0 and files(tmp_path / "b") == before


def test_a_damaged_finished_file_is_made_again_or_found(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", TINY_V3)
    convert(a, tmp_path / "b", Options("fp8"))
    path = sorted((tmp_path / "b").glob("*.safetensors"))[0]
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    convert(a, tmp_path / "b", Options("fp8"))
    assert path.read_bytes() == good
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(UserError, match=r"differs from the source .*removed"):
        convert(a, tmp_path / "b", Options("fp8"), verify=True)
    convert(a, tmp_path / "b", Options("fp8"), verify=True)  # as the error says
    assert path.read_bytes() == good
    path.write_bytes(b"\0" * 8 + good[8:])
    with pytest.raises(UserError, match="damaged header"):
        convert(a, tmp_path / "b", Options("fp8"), verify=True)
    assert not path.exists()


def test_other_weights_of_the_same_shapes_are_another_source(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", TINY_V3)
    convert(a, tmp_path / "b", Options("fp8"))
    model = make_model(TINY_V3)
    with torch.no_grad():
        model.layers[1].mlp.experts.down.mul_(2)
    save_model(model, a, max_shard_bytes=SHARD, overwrite=True)
    with pytest.raises(UserError, match="holds another conversion"):
        convert(a, tmp_path / "b", Options("fp8"))
    convert(a, tmp_path / "b", Options("fp8"), overwrite=True)
    convert(a, tmp_path / "fresh", Options("fp8"))
    assert files(tmp_path / "b") == files(tmp_path / "fresh")


def test_overwriting_writes_what_is_finished_again(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", TINY_V3)
    first = convert(a, tmp_path / "b", Options("fp8"))
    assert convert(a, tmp_path / "b", Options("fp8"), overwrite=True).written == first.bytes


def test_an_overwriting_conversion_that_was_interrupted_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = saved(tmp_path / "a", TINY_V3)
    with monkeypatch.context() as patched:
        patched.setattr(convert_module, "_verify_all", lambda *_: 1 / 0)  # all is written, and then
        with pytest.raises(ZeroDivisionError):
            convert(a, tmp_path / "b", Options("fp8"), verify=True, overwrite=True)
    assert convert(a, tmp_path / "b", Options("fp8"), verify=True, overwrite=True).written == 0


def test_another_conversion_is_not_mixed_in(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", TINY_V3)
    other = tmp_path / "other"
    save_model(make_model(TINY_V3), other)
    convert(a, tmp_path / "b", Options("fp8"))
    before = files(tmp_path / "b")
    for source, options in ((a, Options("bf16")), (a, Options("fp8", scale_fmt="ue8m0")), (other, Options("fp8"))):
        with pytest.raises(UserError, match="holds another conversion"):
            convert(source, tmp_path / "b", options)
    assert files(tmp_path / "b") == before
    convert(other, tmp_path / "b", Options("bf16"), overwrite=True)
    convert(other, tmp_path / "c", Options("bf16"))
    assert weights(tmp_path / "b").keys() == weights(tmp_path / "c").keys()
    load_model(tmp_path / "b")
