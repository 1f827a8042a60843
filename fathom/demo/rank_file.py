"""One rank's file of the official layout, `model{rank}-mp{N}.safetensors`, straight into that rank's part of the model.

    config -> whole model without memory -> shard -> this rank's tensors, checked by name, shape and dtype -> values

No rank reads another's file, and memory holds the rank's part and a chunk. FP8 is dequantised on the way. MTP layers in
the file are passed over: generation one token at a time has no use for them.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fathom.checkpoint.check import FLOATS, FP8, summary
from fathom.checkpoint.layout import DEMO_FILE, LAYER, with_mtp_layers
from fathom.checkpoint.names import TensorSpec, demo_scale, expected, scale_shape
from fathom.checkpoint.reader import fill
from fathom.checkpoint.recipes import StoredWeight
from fathom.checkpoint.safetensors_io import FileReader, TensorInfo, read_header
from fathom.checkpoint.sources import FileTensor, Source
from fathom.config import ModelConfig, QuantizationConfig
from fathom.model.transformer import DeepseekV3
from fathom.parallel.launch import Ranks
from fathom.parallel.tensor import check_sizes, shard
from fathom.runtime import UserError, pick_dtype


def find(folder: Path, rank: int, ranks: int) -> Path:
    """The file of this rank; if it is not there the error says what is."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give --ckpt-path the folder that fathom.demo.convert wrote")
    path = folder / f"model{rank}-mp{ranks}.safetensors"
    if path.exists():
        return path
    sizes = sorted({int(m[2]) for m in map(DEMO_FILE.fullmatch, (p.name for p in folder.iterdir())) if m})
    if ranks in sizes:
        raise UserError(f"{path} is missing, the file of rank {rank}; copy it there or convert again")
    if sizes:
        held = " and ".join(map(str, sizes))
        raise UserError(
            f"{folder} is made for {held} processes in all, not for {ranks}; start that many "
            f"(torchrun --nproc-per-node), or convert with --model-parallel {ranks}"
        )
    raise UserError(f"{folder} holds no {path.name}; make it with python -m fathom.demo.convert")


def load(config: ModelConfig, path: Path, ranks: Ranks, dtype: str = "auto") -> DeepseekV3:
    """This rank's part of the model, in eval mode, from its file alone."""
    check_sizes(config, ranks.size)
    with FileReader() as reader:
        weights = stored_weights(config, path, ranks.rank, ranks.size, reader, ranks.watch.tick)
        matrices = {w.weight.dtype for w in weights.values() if w.spec.kind == "fp8"}
        natural = matrices.pop() if len(matrices) == 1 and not matrices & {FP8} else torch.bfloat16
        wanted = natural if dtype == "auto" else pick_dtype(dtype)
        model = DeepseekV3(config.replace(num_nextn_predict_layers=0), device="meta", dtype=wanted)
        if ranks.group is not None:
            shard(model, ranks.group)
        # one progress bar for all: the ranks of a host share its terminal
        with contextlib.nullcontext() if ranks.rank == 0 else contextlib.redirect_stderr(io.StringIO()):
            fill(model, weights, ranks.device)
    return model.eval()


def stored_weights(
    config: ModelConfig, path: Path, rank: int, ranks: int, reader: FileReader, tick: Callable[[], None] = lambda: None
) -> dict[str, StoredWeight]:
    """What the rank must hold, by Hugging Face name, with shapes and expert numbers as the rank sees them."""
    found = dict(read_header(path).tensors)
    config = with_mtp_layers(config, {int(m[1]) for name in found if (m := LAYER.match(name))})
    block = (config.quantization or QuantizationConfig()).weight_block_size
    weights: dict[str, StoredWeight] = {}
    problems: list[str] = []
    for whole in expected(config).values():
        spec = local_spec(whole, config, rank, ranks)
        if spec is None:
            continue
        weight, scale = found.pop(spec.demo, None), found.pop(demo_scale(spec.demo), None)
        problem = _problem(spec, weight, scale, block)
        if problem is None and weight is not None and not spec.mtp:
            scales = None if scale is None else FileTensor(scale, reader)
            weights[spec.name] = StoredWeight(spec, Ticking(FileTensor(weight, reader), tick), scales, block)
        elif problem is not None:
            problems.append(problem)
    problems += [f"{name} is unexpected" for name in found]
    if problems:
        raise UserError(f"{path} does not hold what the config promises: {summary(problems)}")
    return weights


def local_spec(spec: TensorSpec, config: ModelConfig, rank: int, ranks: int) -> TensorSpec | None:
    """The rank's part of one tensor: an expert whole or not at all, a slice along the table's axis, or everything."""
    if spec.expert is not None:
        owner, number = divmod(spec.expert, config.n_routed_experts // ranks)
        assert spec.slot is not None
        return replace(spec, slot=replace(spec.slot, expert=number)) if owner == rank else None
    if spec.axis is None:
        return spec
    shape = tuple(side // ranks if axis == spec.axis else side for axis, side in enumerate(spec.shape))
    return replace(spec, shape=shape)


def _problem(
    spec: TensorSpec, weight: TensorInfo | None, scale: TensorInfo | None, block: tuple[int, int]
) -> str | None:
    """What is wrong with a tensor and its scale, in the file's own names."""
    name = spec.demo
    if weight is None:
        return f"{name} is missing" if spec.copy_of is None else None
    if weight.shape != spec.shape:
        return f"{name} has shape {list(weight.shape)}, the config says {list(spec.shape)} for this rank"
    if weight.dtype not in (*FLOATS, FP8):
        return f"{name} has dtype {weight.dtype}, not FP32, BF16, FP16 or FP8 E4M3"
    if (weight.dtype == FP8) != (scale is not None):
        return f"{name} is {weight.dtype}, its scale is {'missing' if scale is None else 'there all the same'}"
    if scale is not None and scale.shape != scale_shape(spec.shape, block):
        return f"{demo_scale(name)} has shape {list(scale.shape)}, expected {list(scale_shape(spec.shape, block))}"
    return None


@dataclass(frozen=True, slots=True)
class Ticking:
    """A source that shows the other ranks that reading goes on."""

    source: Source
    tick: Callable[[], None]

    @property
    def dtype(self) -> torch.dtype:
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    def rows(self, start: int, stop: int) -> torch.Tensor:
        self.tick()
        return self.source.rows(start, stop)
