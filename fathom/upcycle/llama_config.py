"""What a Llama-type checkpoint must be for MLA to say the same function; everything else is refused, with the reason.

MLA has one rotary embedding for the whole model, on adjacent pairs, with plain frequencies theta^(-2i/R); full causal
attention; projections without biases except where an upcycle folds them; SwiGLU; RMSNorm before attention and FFN.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fathom.runtime import UserError
from fathom.upcycle.source import LlamaConfig

ARCHITECTURES = ("llama", "mistral", "qwen2")
_SIZES = {
    "vocab_size": 2**24, "hidden_size": 2**20, "intermediate_size": 2**24, "num_hidden_layers": 1024,
    "num_attention_heads": 4096, "num_key_value_heads": 4096, "head_dim": 4096, "max_position_embeddings": 2**31,
}  # fmt: skip


def shown(value: Any) -> str:
    """A value of a file as a message shows it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."


def refuse_architecture(path: Path, name: str) -> None:
    """Only the three architectures that MLA can say."""
    if name == "qwen3":
        raise UserError(
            f"{path} is a qwen3: it norms each head of q and k after the projection, which MLA has no place for; "
            f"take a model of {', '.join(ARCHITECTURES)}"
        )
    if name not in ARCHITECTURES:
        raise UserError(f"{path} is a {shown(name)}; an upcycle starts from {', '.join(ARCHITECTURES)}")


def scaled_rope(path: Path, kind: Any) -> UserError:
    """Rope scaling is refused whatever its kind."""
    return UserError(
        f"{path} stretches its rotary embedding ({shown(kind)}); key heads side by side in MLA's rotary key turn at "
        "their plain frequencies only; take a model without rope scaling"
    )


def sliding_window(path: Path, window: Any, context: Any) -> UserError:
    """MLA sees everything."""
    return UserError(
        f"{path} attends to the last {shown(window)} of {shown(context)} tokens only (sliding window), MLA to all of "
        "them; take a model without one, or set max_position_embeddings to the window if that is all you need"
    )


def make_config(path: Path, values: Mapping[str, Any]) -> LlamaConfig:
    """The config of `values` as a file gives them: dimensions must be whole, positive, and fit together."""
    for key in _SIZES:
        if type(values[key]) is not int or not 1 <= values[key] <= _SIZES[key]:
            raise UserError(
                f"{path}: {key} is {shown(values[key])}, it must be a whole number from 1 to {_SIZES[key]}; "
                "take the model's own file"
            )
    for key in ("rope_theta", "rms_norm_eps"):
        if type(values[key]) is not float or not 0 < values[key] < float("inf"):
            raise UserError(
                f"{path}: {key} is {shown(values[key])}, it must be a number above 0; take the model's own file"
            )
    config = LlamaConfig(**values)
    if config.num_attention_heads % config.num_key_value_heads:
        raise UserError(
            f"{path}: {config.num_attention_heads} query heads cannot share {config.num_key_value_heads} key heads "
            "evenly; take the model's own file"
        )
    if config.head_dim % 2:
        raise UserError(f"{path}: head_dim is {config.head_dim}; rotary pairs need an even one; take another model")
    for i in config.eos_token_id:
        if i >= config.vocab_size:
            raise UserError(f"{path}: EOS is id {i}, there are {config.vocab_size} rows (vocab_size); correct it")
    return config


def expected_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model by its Hugging Face name."""
    hidden, ffn, dh = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_attention_heads * dh, config.num_key_value_heads * dh
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    for i in range(config.num_hidden_layers):
        at = f"model.layers.{i}."
        shapes[at + "input_layernorm.weight"] = shapes[at + "post_attention_layernorm.weight"] = (hidden,)
        for name, width in (("q", q), ("k", kv), ("v", kv)):
            shapes[f"{at}self_attn.{name}_proj.weight"] = (width, hidden)
            if config.qkv_bias:
                shapes[f"{at}self_attn.{name}_proj.bias"] = (width,)
        shapes[at + "self_attn.o_proj.weight"] = (hidden, q)
        shapes[at + "mlp.gate_proj.weight"] = shapes[at + "mlp.up_proj.weight"] = (ffn, hidden)
        shapes[at + "mlp.down_proj.weight"] = (hidden, ffn)
    return shapes


def check_tensors(path: Path, config: LlamaConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Exactly the tensors of the model, in the shapes that the config says."""
    expected = expected_shapes(config)
    missing = [name for name in expected if name not in shapes]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(f"{path} lacks {', '.join(missing[:3])}{more}; download it again, or take a complete file")
    for name, shape in shapes.items():
        if name not in expected:
            raise UserError(f"{path}: {_why_not(name)}; take a model without it")
        if tuple(shape) != expected[name]:
            raise UserError(
                f"{path}: {name} has shape {list(shape)}, the config says {list(expected[name])}; take the config "
                "that belongs to these weights"
            )


def _why_not(name: str) -> str:
    if name.endswith((".q_norm.weight", ".k_norm.weight")):
        return f"{name} norms each head after its projection, which MLA has no place for"
    if name.endswith(".bias"):
        return f"MLA has no place for the bias {name}"
    if name == "rope_freqs.weight":
        return (
            f"{name} stretches single rotary frequencies (Llama 3.1's rope scaling), which MLA's rotary key cannot say"
        )
    return f"the tensor {name} is not part of a Llama-type model as it is read here"
