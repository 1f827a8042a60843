"""Whether a folder holds exactly the tensors its config promises. One error lists every difference, at most 20."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from fathom.checkpoint.foreign import by_tensors
from fathom.checkpoint.layout import LAYER, Found, with_mtp_layers
from fathom.checkpoint.names import SCALE, TensorSpec, expected, is_ignored, layer_prefix, scale_shape
from fathom.checkpoint.recipes import StoredWeight
from fathom.checkpoint.sources import Source
from fathom.config import UNREAD, ModelConfig, QuantizationConfig

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FP8 = torch.float8_e4m3fn
LISTED = 20


@dataclass
class Checked:
    """The config as the files confirm it, the tensors paired with their scales, and every difference."""

    config: ModelConfig
    weights: dict[str, StoredWeight]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check(found: Found, config: ModelConfig) -> Checked:
    """Compare what was found with the table."""
    config, notes = _settle_mtp(found, config)
    out = Checked(config, {}, list(found.problems), found.notes + notes)
    if found.problems:
        return out  # with files missing, a list of their tensors says nothing new
    if foreign := by_tensors(found.tensors):
        out.problems.append(f"the weights are in the format {foreign}, {UNREAD}")
        return out
    specs = expected(config)
    block = (config.quantization or QuantizationConfig()).weight_block_size
    missing = [n for n, spec in specs.items() if n not in found.tensors and spec.copy_of is None]
    for name, spec in specs.items():
        if name in found.tensors:
            _pair(spec, found, config, block, out)
    ignored = {"lm_head.weight"} if config.tie_word_embeddings else set()
    unexpected = [
        n for n in found.tensors if n.removesuffix(SCALE) not in specs and n not in ignored and not is_ignored(n)
    ]
    orphans = [n for n in found.tensors if n.endswith(SCALE) and n.removesuffix(SCALE) not in found.tensors]
    out.problems += [f"{n} has no weight" for n in orphans if n.removesuffix(SCALE) in specs]
    out.problems += [f"{n} is unexpected" for n in unexpected] + [f"{n} is missing" for n in missing]
    return out


def _settle_mtp(found: Found, config: ModelConfig) -> tuple[ModelConfig, list[str]]:
    """Files win over the config on the number of MTP layers: community copies drop the layers or the field."""
    layers = {int(m[1]) for name in found.tensors if (m := LAYER.match(name))}
    settled, promised = with_mtp_layers(config, layers), config.num_nextn_predict_layers
    held = settled.num_nextn_predict_layers
    if held == promised or found.problems:
        return config, []
    if held == 0:
        return settled, [f"the config promises {promised} MTP layers, the files hold none: going on without MTP"]
    first_new = layer_prefix(config.num_hidden_layers + promised)
    if held > promised and first_new + "eh_proj.weight" in found.tensors:
        return settled, [f"the config promises {promised} MTP layers, the files hold {held}: all are taken"]
    return config, []


def _pair(spec: TensorSpec, found: Found, config: ModelConfig, block: tuple[int, int], out: Checked) -> None:
    """Check one tensor and its scale; pair them."""
    name = spec.name
    weight, scale = found.tensors[name], found.tensors.get(name + SCALE)
    if weight.shape != spec.shape:
        out.problems.append(f"{name} has shape {list(weight.shape)}, the config says {list(spec.shape)}")
        return
    if weight.dtype not in (*FLOATS, FP8):
        out.problems.append(f"{name} has dtype {_dtype(weight)}, not FP32, BF16, FP16 or FP8 E4M3")
    elif weight.dtype != FP8 and scale is not None:
        out.problems.append(f"{name} is {_dtype(weight)} and yet has a scale")
    elif weight.dtype == FP8 and scale is None:
        out.problems.append(f"{name} is FP8 and its scale {name.rsplit('.', 1)[-1]}{SCALE} is missing")
    elif weight.dtype == FP8 and len(spec.shape) != 2:
        out.problems.append(f"{name} is FP8, which only matrices can be")
    elif weight.dtype == FP8 and config.quantization is None:
        out.problems.append(f"{name} is FP8, but the config has no quantization_config")
    elif scale is not None and scale.shape != scale_shape(spec.shape, block):
        out.problems.append(
            f"{name}{SCALE} has shape {list(scale.shape)}, blocks of {block[0]}x{block[1]} "
            f"give {list(scale_shape(spec.shape, block))}"
        )
    elif scale is not None and scale.dtype not in (*FLOATS, torch.float8_e8m0fnu):
        out.problems.append(f"{name}{SCALE} has dtype {_dtype(scale)}, not a floating one")
    else:
        out.weights[name] = StoredWeight(spec, weight, scale, block)


def _dtype(source: Source) -> str:
    return str(source.dtype).removeprefix("torch.")


def summary(problems: list[str]) -> str:
    """At most 20 problems, then a count."""
    more = len(problems) - LISTED
    return "; ".join(problems[:LISTED]) + (f"; and {more} more" if more > 0 else "")
