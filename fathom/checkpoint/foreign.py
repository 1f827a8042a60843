"""Which quantised format of other programs a folder is in, by what its files say of themselves.

A config names most of them (config.py refuses those); where it does not, the names of the tensors tell. One line that
says the format is worth more than the hundreds of differences in names and shapes that follow from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fathom.config import UNREAD
from fathom.runtime import UserError, read_json

MODELOPT_FILE = "hf_quant_config.json"
LEAVES: dict[str, str] = {  # the last part of a tensor's name, which no checkpoint of the family has
    "weight_scale_2": "NVFP4 (ModelOpt)",
    "qweight": "GPTQ or AWQ",
    "weight_packed": "compressed-tensors",
    "absmax": "bitsandbytes",
    "gate_up_proj_blocks": "MXFP4",
    "scales": "MLX",
}


def refuse_by_files(folder: Path) -> None:
    """ModelOpt's own file says the format even where `config.json` does not; a training run is no model."""
    if (folder / "checkpoints").is_dir() and not any(folder.glob("*.safetensors")):
        export = folder / "export"
        hint = f"give {export}" if export.is_dir() else f"write its model with `fathom train export {folder} --to DIR`"
        raise UserError(f"{folder} is the folder of a training run, not a model; {hint}")
    path = folder / MODELOPT_FILE
    if path.exists():
        data = read_json(path)
        quantization = data.get("quantization") if isinstance(data, dict) else None
        algorithm = quantization.get("quant_algo") if isinstance(quantization, dict) else None
        raise UserError(f"{path}: the weights are in the format {algorithm or 'of ModelOpt'}, {UNREAD}")


def by_tensors(names: Iterable[str]) -> str | None:
    """The format that the tensors' names give away, or None."""
    leaves = {name.rpartition(".")[2] for name in names}
    return next((format for leaf, format in LEAVES.items() if leaf in leaves), None)
