"""What an upcycle starts from: a Llama-type checkpoint, whatever file it lies in, behind one small interface.

    hf.py    a folder in Hugging Face layout (llama, mistral, qwen2)  } -> Source: config,
    gguf.py  one GGUF file of these architectures                    }    tensor by tensor, side files

Tensors have Hugging Face's Llama names and FP32 values. One thing is made the same on the way: the rows of q_proj and
k_proj (and of their biases) stand for ADJACENT rotary pairs (x0, x1), (x2, x3), ..., as in DeepSeek-V3 and in GGUF
files of Llama. Hugging Face's files pair value i with value i + head_dim/2; hf.py reorders their rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class LlamaConfig:
    """The dimensions of a Llama-type model that MLA can say; what it cannot say has been refused before."""

    model_type: str  # llama | mistral | qwen2
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool  # qwen2: biases on q, k and v
    bos_token_id: int | None
    eos_token_id: tuple[int, ...]
    pad_token_id: int | None


class Source(Protocol):
    """An opened checkpoint. Nothing but headers is in memory; `tensor` reads."""

    config: LlamaConfig
    name: str  # as the NOTICE names it: the model's own name, else the file's
    licence: str  # as the checkpoint states it; "" where it states none
    origin: str  # where it came from, for the NOTICE: path or file name, and a URL where the file names one
    files: tuple[Path, ...]  # the files that hold the weights

    def tensor(self, name: str) -> Tensor:
        """FP32 values of `model.layers.{i}.self_attn.q_proj.weight` and so on; UserError when it is not there."""

    def names(self) -> Iterator[str]:
        """All tensors there are."""

    def write_side_files(self, folder: Path) -> None:
        """tokenizer.json, tokenizer_config.json, chat_template.jinja, generation_config.json: those there are."""

    def close(self) -> None:
        """Close the files."""
