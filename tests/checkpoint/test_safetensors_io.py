"""Our reader and writer against the safetensors library."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fathom.checkpoint.safetensors_io import DTYPES, Entry, FileReader, TensorWriter, file_size, read_header
from fathom.runtime import UserError


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    out = {}
    for n, dtype in enumerate(DTYPES.values()):
        raw = torch.randint(0, 2 if dtype == torch.bool else 120, (5, 3 * dtype.itemsize), generator=generator)
        out[f"z{n % 3}.w{n}"] = raw.to(torch.uint8).view(dtype)
    return out | {"scalar": torch.tensor(3.0), "empty": torch.empty(0, 4), "ünïcode": torch.ones(2)}


def write(path: Path, content: dict[str, torch.Tensor]) -> list[Entry]:
    entries = [Entry(name, t.dtype, tuple(t.shape)) for name, t in content.items()]
    with TensorWriter(path, entries) as writer:
        for name, t in reversed(content.items()):  # any order
            writer.write(name, 0, t)
    return entries


def test_writes_the_bytes_the_library_writes(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "theirs", {"format": "pt"})
    entries = write(tmp_path / "ours", tensors())
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert file_size(entries) == (tmp_path / "ours").stat().st_size


def test_writes_in_pieces(tmp_path: Path) -> None:
    w = torch.arange(70, dtype=torch.float32).view(10, 7)
    with TensorWriter(tmp_path / "f", [Entry("b", torch.float32, (10, 7)), Entry("a", torch.bfloat16, (3,))]) as writer:
        writer.write("b", 4, w[4:])
        writer.write("a", 0, torch.ones(3, dtype=torch.bfloat16))
        writer.write("b", 0, w[:4])
    assert torch.equal(load_file(tmp_path / "f")["b"], w)


def test_a_forgotten_piece_is_a_defect(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="not written completely"),
        TensorWriter(tmp_path / "f", [Entry("a", torch.float32, (4,))]) as writer,
    ):
        writer.write("a", 0, torch.ones(3))


def test_reads_rows(tmp_path: Path) -> None:
    content = {k: v for k, v in tensors().items() if v.dim() == 2}
    save_file(content, tmp_path / "f")
    header = read_header(tmp_path / "f")
    with FileReader() as reader:
        for name, t in content.items():
            rows = (
                reader.rows(header.tensors[name], 1, len(t) - 1) if len(t) else reader.rows(header.tensors[name], 0, 0)
            )
            assert rows.dtype == t.dtype
            assert torch.equal(rows.view(torch.uint8), t[1 : len(t) - 1].contiguous().view(torch.uint8))


def header_file(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


F4 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        ({"a": F4}, b"123", "truncated"),
        ({"a": F4}, b"12345", "1 bytes more"),
        ({"a": F4 | {"shape": [2]}}, b"1234", "needs 8 bytes"),
        ({"a": F4 | {"dtype": "F7"}}, b"1234", "dtype 'F7'"),
        ({"a": F4 | {"shape": [-1]}}, b"1234", "not whole numbers"),
        ({"a": F4 | {"shape": None}}, b"1234", "broken safetensors header"),
        ({"a": F4, "b": F4}, b"1234", "overlaps or leaves a gap"),
        ({"a": F4, "b": F4 | {"data_offsets": [8, 12]}}, b"123456789012", "overlaps or leaves a gap"),
        ({"a": {"dtype": "F32"}}, b"", "broken safetensors header"),
        (b'{"a": 1, "a": 2}', b"", "twice"),
        (b"[]", b"", "not an object"),
        (b"{", b"", "broken safetensors header"),
        (b"\xff\xfe", b"", "broken safetensors header"),
    ],
)
def test_broken_files(tmp_path: Path, header: object, data: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        read_header(header_file(tmp_path / "bad.safetensors", header, data))
    assert "bad.safetensors" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"1234", struct.pack("<Q", 2**63) + b"{}", b"<html>not found</html>"])
def test_not_safetensors_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(UserError, match="truncated or not a safetensors file"):
        read_header(tmp_path / "f")


def test_a_file_that_shrinks_while_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(100, 10)}, tmp_path / "f")
    info = read_header(tmp_path / "f").tensors["a"]
    with open(tmp_path / "f", "r+b") as file:
        file.truncate(500)
    with FileReader() as reader, pytest.raises(UserError, match="became shorter"):
        reader.rows(info, 0, 100)
