"""Who teaches in a distillation: a model's K most likely tokens at every position, asked as training goes or before it.

    teacher = ""                    the run's own main model, which is frozen: MTP modules learn from it
    teacher = DIR, hub id or name   any checkpoint that Fathom loads
    teacher = "llama:PATH"          a Llama-type folder or GGUF file (upcycle/llama.py)
    teacher = "transformers:DIR"    what transformers loads, if it is installed

A teacher is a function of a batch: `Targets`. `Asked` runs a model; teacher_cache.py keeps on disk what one said.
All speak the student's tokens: another size of the vocabulary, or a tokenizer with other ids, is refused.

Shapes: B rows, T tokens, K kept tokens, D the teacher's hidden width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fathom.checkpoint.manifest import sample
from fathom.checkpoint.reader import load_model
from fathom.kernels.distillation import top_log_probs
from fathom.model.transformer import DeepseekV3, attention_mask
from fathom.models.resolve import resolve
from fathom.runtime import UserError
from fathom.text.batch import Batch
from fathom.text.tokenizer import Tokenizer
from fathom.train import base


@dataclass(frozen=True)
class Targets:
    """What a teacher says: ids [B, T, K], log_probs [B, T, K] FP32, the most likely first; its states [B, T, D] after
    the final norm where they are wanted."""

    ids: Tensor
    log_probs: Tensor
    hidden: Tensor | None = None


Teacher = Callable[[Batch], Targets]
Hidden = Callable[[Tensor, Tensor | None], Tensor]  # tokens, segments [B, T] -> [B, T, D]


@dataclass(frozen=True)
class Speaker:
    """A model that can teach: its hidden states and its output head [V, D]."""

    hidden: Hidden
    head: Tensor


@dataclass(frozen=True)
class Asked:
    """A teacher that runs whenever it is asked."""

    speaker: Speaker
    top_k: int
    temperature: float
    keeps_hidden: bool = False

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Targets:
        h = self.speaker.hidden(batch.tokens, batch.segments)
        ids, log_probs = top_log_probs(h.flatten(0, 1), self.speaker.head, self.top_k, self.temperature)
        shape = batch.tokens.shape
        return Targets(ids.unflatten(0, shape), log_probs.unflatten(0, shape), h if self.keeps_hidden else None)


def speaker_of(model: DeepseekV3) -> Speaker:
    """A model of ours, frozen."""
    return Speaker(lambda tokens, segments: model.hidden(tokens, segments=segments), model.lm_head.weight)


def identity(teacher: str) -> str:
    """What the cache knows a teacher by: a fingerprint of its files."""
    kind, path = _parse(teacher)
    if kind == "fathom":
        return base.fingerprint(resolve(path))
    files = sorted(p for p in ([Path(path)] if Path(path).is_file() else Path(path).iterdir()) if p.is_file())
    stated = [(p.name, p.stat().st_size, sample(p, p.stat().st_size)) for p in files if p.suffix != ".md"]
    return hashlib.sha256(repr(stated).encode()).hexdigest()[:32]


def check_teacher(teacher: str, student: DeepseekV3, tokenizer: Tokenizer) -> None:
    """UserError unless the teacher is there and means the same by its ids, as far as its files say."""
    kind, path = _parse(teacher)
    if kind == "transformers" and importlib.util.find_spec("transformers") is None:
        raise UserError(f"distill.teacher {teacher} needs transformers; run `pip install transformers`")
    folder = resolve(path) if kind == "fathom" else Path(path)
    if not folder.exists():
        raise UserError(f"distill.teacher {teacher}: {folder} does not exist; give a folder or a file")
    if (folder / "tokenizer.json").exists() and (other := tokenizer.unlike(Tokenizer.from_pretrained(folder))):
        raise UserError(
            f"distill.teacher {teacher} has another tokenizer than data.tokenizer: {len(other)} tokens have other ids, "
            f"such as {other[0]!r}; a teacher's distribution is over the student's tokens"
        )


def load_speaker(teacher: str, student: DeepseekV3, device: torch.device) -> Speaker:
    """The model behind `distill.teacher`, in FP32; UserError when its vocabulary is not the student's."""
    kind, path = _parse(teacher)
    speaker = {"fathom": _fathom, "llama": _llama, "transformers": _transformers}[kind](path, device)
    if (rows := speaker.head.shape[0]) != student.config.vocab_size:
        raise UserError(
            f"distill.teacher {teacher} has {rows} rows in its head, the student {student.config.vocab_size}; "
            "a teacher's distribution is over the student's tokens"
        )
    return speaker


def _parse(teacher: str) -> tuple[str, str]:
    kind, colon, path = teacher.partition(":")
    return (kind, path) if colon and kind in ("llama", "transformers") else ("fathom", teacher)


def _fathom(path: str, device: torch.device) -> Speaker:
    return speaker_of(load_model(resolve(path), dtype="float32", device=str(device)).requires_grad_(False))


def _llama(path: str, device: torch.device) -> Speaker:
    from fathom.upcycle.llama import Llama
    from fathom.upcycle.open import open_source

    source = open_source(Path(path))
    try:
        model = Llama.load(source).to(device)
    finally:
        source.close()
    return Speaker(lambda tokens, segments: model.hidden(tokens, segments=segments), model.head)


def _transformers(path: str, device: torch.device) -> Speaker:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model = model.to(device).eval().requires_grad_(False)

    def hidden(tokens: Tensor, segments: Tensor | None) -> Tensor:
        allowed = attention_mask(tokens.shape[1], 0, segments, tokens.device)
        mask = None
        if allowed is not None:
            mask = torch.zeros(allowed.shape, device=tokens.device).masked_fill_(~allowed, float("-inf"))[:, None]
        out: Tensor = model.base_model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
        return out

    return Speaker(hidden, model.get_output_embeddings().weight.detach())
