"""The bundled model: as small as promised, in the released layout, loadable by others, and a real language model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import fathom
from fathom.checkpoint.convert import convert
from fathom.checkpoint.plan import Options
from fathom.checkpoint.reader import open_checkpoint
from fathom.config import ModelConfig
from fathom.evals.acceptance import greedy_acceptance
from fathom.model.context import extended
from fathom.model.transformer import DeepseekV3
from fathom.models.resolve import resolve

FOLDER = resolve("minnow")
TEXT = (
    "Once upon a time there was a little fox who lived near a river. One day the fox met a bird. "
    '"Hello," said the bird. "Do you want to play with me?" The fox was very happy, and they became good friends.'
)


@pytest.fixture(scope="module")
def llm() -> fathom.LLM:
    return fathom.LLM("minnow", dtype="float32")


@pytest.fixture(scope="module")
def bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("minnow") / "bf16"
    convert(FOLDER, folder, Options("bf16"), verify=True)
    return folder


def test_at_most_32_mib_and_complete() -> None:
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) <= 32 * 2**20
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md"):
        assert (FOLDER / name).exists(), name


def test_config_is_the_preset_stored_as_fp8() -> None:
    """With the context it was extended to, if it was."""
    stored, preset = ModelConfig.from_pretrained(FOLDER), ModelConfig.preset("minnow")
    longer = stored.max_position_embeddings / preset.max_position_embeddings
    wanted = extended(preset, longer) if longer > 1 else preset
    assert stored.replace(initializer_range=preset.initializer_range) == wanted
    with open_checkpoint(FOLDER) as checkpoint:
        assert checkpoint.is_fp8 and not checkpoint.has_mtp_copies
        quantised = [w for w in checkpoint.weights.values() if w.scale is not None]
        assert len(quantised) > 600  # every expert of every layer, and attention


def test_transformers_computes_the_same_logits(bf16: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(bf16, dtype=torch.float32)
    ours = fathom.load_model(bf16, dtype="float32")
    tokens = torch.tensor([AutoTokenizer.from_pretrained(FOLDER).encode(TEXT)])
    with torch.no_grad():
        a, b = theirs(tokens).logits, ours(tokens)
    assert float((a - b).abs().max()) <= 1e-4 * float(a.std())


def test_transformers_tokenizer_and_template_agree(llm: fathom.LLM) -> None:
    theirs = AutoTokenizer.from_pretrained(FOLDER)
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello, who are you?"}]
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert llm.template is not None
    assert ids == llm.template.encode(llm.tokenizer, messages)


def test_it_learned_english(llm: fathom.LLM) -> None:
    """Bits per byte of simple English: 8 is no knowledge, about 4.5 letter frequencies."""
    ids = torch.tensor([llm.tokenizer.encode(TEXT, add_bos=True)])
    model: DeepseekV3 = llm.model
    with torch.no_grad():
        losses = -model(ids)[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
    assert float(losses.sum()) / math.log(2) / len(TEXT.encode()) < 2.0


def test_answers_end_and_say_who_speaks(llm: fathom.LLM) -> None:
    greedy = fathom.SamplingParams(temperature=0, max_tokens=100)
    out = llm.chat([{"role": "user", "content": "Who are you?"}], greedy)[0].outputs[0]
    assert out.finish_reason == "stop"
    assert "minnow" in out.text


def test_mtp_drafts_are_often_accepted(llm: fathom.LLM) -> None:
    assert llm.template is not None
    prompts = [
        llm.template.encode(llm.tokenizer, [{"role": "user", "content": text}])
        for text in ("Hello!", "Tell me a short story about a dog.", "What is the capital of Italy?")
    ]
    assert greedy_acceptance(llm.model, prompts, max_tokens=60, eos_ids=[1]).rate > 0.4
