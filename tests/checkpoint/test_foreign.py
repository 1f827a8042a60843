"""The formats of other programs are known by the names of their tensors."""

from __future__ import annotations

import pytest

from fathom.checkpoint.foreign import by_tensors
from fathom.checkpoint.names import expected
from fathom.presets import PRESETS

Q = "model.layers.0.self_attn.q_a_proj"
FORMATS = {
    "MLX": [f"{Q}.weight", f"{Q}.scales", f"{Q}.biases"],
    "NVFP4 (ModelOpt)": [f"{Q}.weight", f"{Q}.weight_scale", f"{Q}.weight_scale_2"],
    "GPTQ or AWQ": [f"{Q}.qweight", f"{Q}.qzeros", f"{Q}.scales"],
    "bitsandbytes": [f"{Q}.weight", f"{Q}.weight.absmax", f"{Q}.weight.quant_map"],
    "compressed-tensors": [f"{Q}.weight_packed", f"{Q}.weight_scale", f"{Q}.weight_shape"],
    "MXFP4": ["model.layers.1.mlp.experts.gate_up_proj_blocks", "model.layers.1.mlp.experts.gate_up_proj_scales"],
}


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_has_its_name(format: str) -> None:
    assert by_tensors(FORMATS[format]) == format


def test_none_of_them_is_a_tensor_of_the_family() -> None:
    names = list(expected(PRESETS["v3-671b"].replace(num_hidden_layers=4)))
    assert by_tensors([*names, *(f"{name}_scale_inv" for name in names)]) is None
