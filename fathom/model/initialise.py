"""Fresh weights as a function of (seed, name): whoever holds a part of the model makes that part, and no more.

Every matrix is normal with std `initializer_range` (the report: 0.006 for all learnable parameters; the distribution
was not published), norm gains are 1, biases 0. Each tensor, and each expert of a stack, has a random stream of its own:
ranks need not build the 671B parameters of which they keep a thousandth, and all layouts start from the same weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def initialise(
    parameters: Mapping[str, Tensor], std: float, seed: int, first_expert: Mapping[str, int] | None = None
) -> None:
    """Fill tensors in place. first_expert: of stacks of experts that are held in part, the first expert held."""
    for name, tensor in parameters.items():
        if tensor.dim() == 3:
            first = (first_expert or {}).get(name, 0)
            for i, expert in enumerate(tensor):
                expert.normal_(0.0, std, generator=_stream(seed, f"{name}.{first + i}", tensor.device))
        elif tensor.dim() == 2:
            tensor.normal_(0.0, std, generator=_stream(seed, name, tensor.device))
        else:
            tensor.fill_(0.0 if name.endswith(".bias") else 1.0)


def _stream(seed: int, name: str, device: torch.device) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


@torch.no_grad()
def materialise(module: nn.Module, device: torch.device, made: dict[int, nn.Parameter] | None = None) -> None:
    """Memory for what a module still has on the meta device; router biases are zero, parameters wait for `initialise`.

    Tied parameters stay one: `made` maps old ones to new ones, also over several calls.
    """
    made = {} if made is None else made
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if parameter.is_meta:
                new = made.setdefault(id(parameter), nn.Parameter(torch.empty_like(parameter, device=device)))
                setattr(owner, name, new)
        for name, buffer in list(owner.named_buffers(recurse=False)):
            if buffer.is_meta:
                setattr(owner, name, torch.zeros_like(buffer, device=device))
