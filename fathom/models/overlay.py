"""A difference file laid over a checkpoint: weights of the same name are replaced, new ones are added.

What training added to an upcycled model (the MTP module, routed experts, their routers) is small beside the model, and
is all that has to be shipped. It is a safetensors file with Hugging Face's names, in any dtype: FP8 with its scales
keeps it small, and becomes what the checkpoint is stored in. Weights behind the last main layer make the model one with
an MTP module: its config is told how many layers there are.
"""

from __future__ import annotations

from pathlib import Path

from fathom.checkpoint.layout import INDEX, LAYER, SINGLE, with_mtp_layers
from fathom.checkpoint.names import SCALE, TensorSpec, expected, scale_shape
from fathom.checkpoint.reader import CONFIG, Checkpoint, open_checkpoint
from fathom.checkpoint.recipes import StoredWeight, Target, recipe
from fathom.checkpoint.safetensors_io import FileReader, TensorInfo, read_header
from fathom.checkpoint.sources import FileTensor
from fathom.checkpoint.writer import write_file
from fathom.runtime import UserError, read_json, write_json


def overlay(base: Path, delta: Path) -> None:
    """Lay `delta` over the checkpoint in the folder `base`, which becomes one file."""
    tensors = read_header(delta).tensors
    layers = {int(match[1]) for name in tensors if (match := LAYER.match(name))}
    with open_checkpoint(base) as checkpoint:
        main = set(range(checkpoint.config.num_hidden_layers + checkpoint.config.num_nextn_predict_layers))
        config = with_mtp_layers(checkpoint.config, main | layers)
        specs = expected(config)
        over = {name: _weight(name, delta, tensors, specs, checkpoint) for name in tensors if not name.endswith(SCALE)}
        recipes = [
            recipe(over[name], _target(checkpoint), config.quantization)
            if name in over
            else recipe(checkpoint.weights[name], "keep")
            for name in specs
            if name in over or name in checkpoint.weights
        ]
        write_file(base / SINGLE, recipes)
        for file in {*checkpoint.found.home.values(), INDEX} - {SINGLE}:
            (base / file).unlink(missing_ok=True)
    if config.num_nextn_predict_layers != checkpoint.config.num_nextn_predict_layers:
        changed = {"num_nextn_predict_layers": config.num_nextn_predict_layers}
        write_json(base / CONFIG, read_json(base / CONFIG) | changed)


def _target(checkpoint: Checkpoint) -> Target:
    if checkpoint.is_fp8:
        return "fp8"
    return "fp32" if checkpoint.config.torch_dtype == "float32" else "bf16"


def _weight(
    name: str, delta: Path, tensors: dict[str, TensorInfo], specs: dict[str, TensorSpec], checkpoint: Checkpoint
) -> StoredWeight:
    """One weight of the difference file, with its scale."""
    info, scale, spec = tensors[name], tensors.get(name + SCALE), specs.get(name)
    reader: FileReader = checkpoint.reader
    if spec is None or info.shape != spec.shape:
        wanted = "none of that name" if spec is None else list(spec.shape)
        raise UserError(
            f"{delta} holds {name} as {list(info.shape)}, the model has {wanted}; they do not belong together"
        )
    stored = StoredWeight(spec, FileTensor(info, reader), None if scale is None else FileTensor(scale, reader))
    if (info.dtype.itemsize == 1) != (scale is not None and scale.shape == scale_shape(spec.shape, stored.block)):
        raise UserError(f"{delta} holds {name} as {info.dtype} and not the scales that go with it; make it again")
    return stored
