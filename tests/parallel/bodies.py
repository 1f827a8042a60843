"""What the ranks do in tests of several processes; they must be importable by name in a fresh process."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fathom.config import ModelConfig
from fathom.demo import generate
from fathom.engine.naive import generate_tokens
from fathom.engine.params import SamplingParams
from fathom.model.transformer import DeepseekV3
from fathom.parallel.launch import Place, join
from fathom.parallel.tensor import shard


@dataclass(frozen=True)
class Case:
    """A model to split, and tokens to run through it."""

    name: str
    config: ModelConfig
    dtype: torch.dtype = torch.float32

    def model(self) -> DeepseekV3:
        generator = torch.Generator().manual_seed(3)
        model = DeepseekV3(self.config, dtype=torch.float32).init_weights(generator)
        with torch.no_grad():
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                if tensor.dim() == 1:  # gains, biases, router biases: nothing may be trivial
                    tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
                assert tensor.abs().sum() > 0, name
        return model.to_dtype(self.dtype).eval()

    def tokens(self) -> Tensor:
        generator = torch.Generator().manual_seed(4)
        return torch.randint(0, self.config.vocab_size, (2, 7), generator=generator)


@torch.inference_mode()
def outputs(model: DeepseekV3, tokens: Tensor) -> dict[str, Tensor]:
    """Logits of whole sequences, of decoding with a cache, and of MTP."""
    out = {"whole": model(tokens)}
    cache = model.new_cache(len(tokens), tokens.shape[1])
    steps = [model(tokens[:, :4], cache=cache)]
    steps += [model(tokens[:, t : t + 1], cache=cache) for t in range(4, tokens.shape[1])]
    out["cached"] = torch.cat(steps, dim=1)
    if len(model.mtp):
        out["mtp"] = model.mtp_logits(tokens)
    return out


def split_outputs(cases: list[Case]) -> dict[str, Any]:
    """Every case on the split model: its outputs, the answer it generates, and the rank's number of parameters."""
    found: dict[str, Any] = {}
    with join(Place.from_env()) as ranks:
        assert ranks.group is not None
        for case in cases:
            model = shard(case.model(), ranks.group)
            result: dict[str, Any] = dict(outputs(model, case.tokens()))
            prompt = case.tokens()[0].tolist()
            result["answer"] = [s.token_id for s in generate_tokens(model, prompt, SamplingParams(0.0, max_tokens=5))]
            result["parameters"] = sum(p.numel() for p in model.parameters())
            found[case.name] = result
            assert ranks.group.agree(17) and not ranks.group.agree(ranks.rank)
    return found


def demo(argv: list[str], saboteur: int | None = None, how: int = 0) -> int:
    """The command itself. The rank `saboteur` gets the signal `how` after its third token."""
    if saboteur == int(os.environ["RANK"]):
        original = generate.generate_tokens

        def until_the_third(*args: Any, **options: Any) -> Any:
            for number, step in enumerate(original(*args, **options)):
                yield step
                if number == 2:
                    os.kill(os.getpid(), how)

        generate.generate_tokens = until_the_third  # type: ignore[assignment]
    return generate.main(argv)


def demo_killed(argv: list[str]) -> int:
    return demo(argv, saboteur=1, how=signal.SIGKILL)
