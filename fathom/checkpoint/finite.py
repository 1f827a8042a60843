"""Values that are no numbers. A NaN in a weight makes every answer wrong and raises nothing on its own: in FP8 the two
NaN codes are numbers to code that decodes by arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor

from fathom.kernels.reference import FP8
from fathom.runtime import UserError

FP8_NAN = 0x7F  # without the sign; E4M3 has no infinity


def not_finite(values: Tensor) -> int:
    """How many values are NaN or infinite. The smallest and the largest tell whether there are any, in a fraction of
    the time of a test of each."""
    if values.dtype == FP8:
        codes = values.view(torch.uint8) & 0x7F
        return int((codes == FP8_NAN).sum()) if values.numel() and int(codes.amax()) == FP8_NAN else 0
    if not values.numel() or bool(torch.stack(torch.aminmax(values)).isfinite().all()):
        return 0
    return int((~values.isfinite()).sum())


def require_finite(name: str, values: Tensor) -> None:
    """A UserError that names the tensor, if any of the values (some of its rows) is NaN or infinite."""
    if count := not_finite(values):
        raise UserError(
            f"{name} holds NaN or infinite values ({count} of the {values.numel():,} read last); the checkpoint is "
            "damaged, `fathom inspect --deep` lists all such tensors"
        )
