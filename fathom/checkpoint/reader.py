"""Opening and loading checkpoints: config first, headers against the table, then values straight into place.

`load_model` builds the model without memory (meta device), allocates each parameter once in its final dtype and fills
it chunk by chunk: an expert's rows go directly into the stacked [E, 2I, D]. Peak memory above the weights is a chunk.
FP8 is dequantised on the way, or kept as it is with dtype "fp8"; nothing is ever cast silently, and the router bias is
FP32 whatever the file says. A NaN or infinite value is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fathom.checkpoint.check import Checked, check, summary
from fathom.checkpoint.finite import require_finite
from fathom.checkpoint.foreign import refuse_by_files
from fathom.checkpoint.layout import Found, is_demo, read_layout
from fathom.checkpoint.names import TensorSpec, by_parameter
from fathom.checkpoint.recipes import StoredWeight, read_scale
from fathom.checkpoint.safetensors_io import FileReader
from fathom.checkpoint.sources import row_chunks
from fathom.config import ModelConfig
from fathom.kernels.reference import FP8
from fathom.model.quant import hold_fp8
from fathom.model.transformer import DeepseekV3
from fathom.runtime import UserError, pick_device, pick_dtype, progress

SCALE_SUFFIX = "_scale_inv"
CONFIG = "config.json"


@dataclass
class Checkpoint:
    """A checked checkpoint: nothing but headers has been read. Close it (or use `with`) to close its files."""

    path: Path
    config_path: Path  # the file that `config` was read from
    config: ModelConfig
    found: Found
    weights: dict[str, StoredWeight]
    notes: list[str]
    reader: FileReader

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.__exit__()

    @property
    def is_fp8(self) -> bool:
        """Whether any weight is stored in FP8."""
        return any(w.scale is not None for w in self.weights.values())

    @property
    def has_mtp_copies(self) -> bool:
        """Whether MTP layers bring their own copies of embedding and head."""
        return any(w.spec.copy_of is not None for w in self.weights.values())


def read_config(folder: Path, config_file: Path | None = None) -> ModelConfig:
    """The config of a folder; a demo folder may have none, then `config_file` must be given."""
    path = config_file or folder / CONFIG
    if not path.exists() and config_file is None and is_demo(folder):
        raise UserError(f"{folder} is in the demo layout and has no config.json; name the config file with --config")
    return ModelConfig.from_json(path)


def examine(folder: Path, reader: FileReader, config_file: Path | None = None) -> tuple[Found, Checked]:
    """Headers of a folder compared with the table; differences are listed, not raised."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder of a checkpoint")
    refuse_by_files(folder)
    config = read_config(folder, config_file)
    found = read_layout(folder, config, reader)
    return found, check(found, config)


def open_checkpoint(folder: Path | str, config_file: Path | None = None) -> Checkpoint:
    """Check a folder from headers alone; a UserError lists what is wrong."""
    folder, reader = Path(folder), FileReader()
    found, checked = examine(folder, reader, config_file)
    if checked.problems:
        raise UserError(f"{folder} does not hold what its config promises: {summary(checked.problems)}")
    return Checkpoint(
        folder, config_file or folder / CONFIG, checked.config, found, checked.weights, checked.notes, reader
    )


def load_model(folder: Path | str, dtype: str = "auto", device: str = "auto") -> DeepseekV3:
    """The model of a folder, in eval mode. (`fathom.load_model` takes names and hub ids too: models/load.py.)

    dtype "auto": bfloat16 for FP8 and BF16 checkpoints, float32 or float16 for those; FP8 is dequantised. "fp8" is the
    same, but weights that are stored in FP8 stay so (model/quant.py).
    """
    target = pick_device(device)
    with open_checkpoint(folder) as checkpoint:
        for note in checkpoint.notes:
            warnings.warn(note, stacklevel=2)
        weights = checkpoint.weights.values()
        wanted = _natural_dtype(weights) if dtype in ("auto", "fp8") else pick_dtype(dtype)
        model = DeepseekV3(checkpoint.config, device="meta", dtype=wanted)
        if dtype == "fp8":
            hold_fp8(model, _stored_fp8(checkpoint.weights))
        fill(model, checkpoint.weights, target)
    return model.eval()


def _natural_dtype(weights: Iterable[StoredWeight]) -> torch.dtype:
    stored = [w.weight.dtype for w in weights if w.spec.kind == "fp8"]
    floats = {dtype for dtype in stored if dtype.itemsize > 1}
    return floats.pop() if len(floats) == 1 and len(floats) == len(set(stored)) else torch.bfloat16


@torch.no_grad()
def fill(model: DeepseekV3, weights: dict[str, StoredWeight], device: torch.device) -> None:
    """Give every parameter and buffer of a meta model its memory and its values."""
    wanted = dict(model.named_parameters()) | dict(model.named_buffers())
    total = sum(w.spec.numel for w in weights.values() if w.spec.slot)
    specs = by_parameter({name: w.spec for name, w in weights.items()})
    scales = {name for name in wanted if name.endswith(SCALE_SUFFIX)}
    assert set(specs) == set(wanted) - scales, set(specs) ^ set(wanted)
    with progress("loading", total, unit="parameters") as bar:
        for name, meta in wanted.items():
            if name in scales:
                continue  # comes with its weight
            tensor = torch.empty(meta.shape, dtype=meta.dtype, device=device)
            if tensor.dtype == FP8:
                _fill_fp8(model, name, tensor, [(spec, weights[spec.name]) for spec in specs[name]])
                bar.advance(tensor.numel())
                continue
            for spec in specs[name]:
                assert spec.slot is not None
                _copy(weights[spec.name], spec.slot.of(tensor), bar.advance)
            _place(model, name, tensor)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight


def _copy(weight: StoredWeight, target: Tensor, advance: Callable[[int], None]) -> None:
    for start, rows in weight.values(target.dtype):
        target[start : start + len(rows)] = rows
        advance(rows.numel())


@torch.no_grad()
def fill_part(folder: Path, tensors: Mapping[str, Tensor], first_expert: Mapping[str, int]) -> set[str]:
    """Set tensors, named as in our model, to the values of a checkpoint; what is not asked for is not read. Returns the
    names that the checkpoint does not have.

    first_expert: of stacks of experts that are held in part, the number of the first expert held.
    """
    with open_checkpoint(folder) as checkpoint:
        specs = by_parameter({name: w.spec for name, w in checkpoint.weights.items()})
        with progress("loading", sum(t.numel() for t in tensors.values()), unit="parameters") as bar:
            for name, tensor in tensors.items():
                for spec in specs.get(name, []):
                    slot = spec.slot
                    assert slot is not None
                    if slot.expert is not None:
                        own = slot.expert - first_expert.get(name, 0)
                        if not 0 <= own < len(tensor):
                            continue
                        slot = replace(slot, expert=own)
                    _copy(checkpoint.weights[spec.name], slot.of(tensor), bar.advance)
    return tensors.keys() - specs.keys()


def _stored_fp8(weights: dict[str, StoredWeight]) -> set[str]:
    """Our parameters of which every part is stored in FP8."""
    parts: dict[str, bool] = {}
    for weight in weights.values():
        if weight.spec.slot is not None:
            name = weight.spec.slot.param
            parts[name] = parts.get(name, True) and weight.scale is not None
    return {name for name, fp8 in parts.items() if fp8}


def _fill_fp8(model: nn.Module, name: str, tensor: Tensor, parts: list[tuple[TensorSpec, StoredWeight]]) -> None:
    """The file's own bytes and scales, into place."""
    scale_name = name + SCALE_SUFFIX
    owner, _, leaf = scale_name.rpartition(".")
    module = model.get_submodule(owner)
    scale = torch.empty(module.get_parameter(leaf).shape, dtype=torch.float32, device=tensor.device)
    rows_per_block = module.block[0]  # type: ignore[index]
    for spec, stored in parts:
        assert spec.slot is not None and stored.scale is not None
        slot = spec.slot
        target = slot.of(tensor).view(torch.uint8)
        for start, stop in row_chunks(stored.weight):
            rows = stored.weight.rows(start, stop)
            require_finite(spec.name, rows)
            target[start:stop] = rows.view(torch.uint8)
        first, last = slot.start // rows_per_block, -(-slot.stop // rows_per_block)
        (scale if slot.expert is None else scale[slot.expert, first:last])[:] = read_scale(spec.name, stored.scale)
    _place(model, name, tensor)
    _place(model, scale_name, scale)


def _place(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=tensor.dtype != FP8)
    else:
        module._buffers[leaf] = tensor
