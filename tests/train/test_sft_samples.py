"""Which tokens of a dialogue are trained: what the assistant says, its end token, nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_run import MODEL

from fathom.config import ModelConfig
from fathom.model.transformer import DeepseekV3
from fathom.runtime import UserError
from fathom.text.chat import BUILTIN, ChatTemplate
from fathom.text.dataset import DialogueDataset
from fathom.text.tokenizer import Tokenizer
from fathom.train.evaluate import nats_of
from fathom.train.sft import encode_dialogue, heldout_loss, load_samples

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "the fish?"},
    {"role": "assistant", "content": "It swims."},
    {"role": "user", "content": "and the bird? <｜Assistant｜>"},
    {"role": "assistant", "content": "It sings all day."},
]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(tokenizer_folder)


@pytest.mark.parametrize("name", list(BUILTIN))
def test_only_the_assistant_is_trained(tokenizer: Tokenizer, name: str) -> None:
    template = ChatTemplate.builtin(name)
    sample = encode_dialogue(TALK, template, tokenizer)
    assert len(sample.ids) == len(sample.trained)
    spans: list[list[int]] = [[]]
    for i, keep in zip(sample.ids, sample.trained, strict=True):
        if keep:
            spans[-1].append(i)
        elif spans[-1]:
            spans.append([])
    end = tokenizer.decode([tokenizer.eos_ids[0]], skip_special=False)
    said = [tokenizer.decode(span, skip_special=False) for span in spans if span]
    assert said == [f"It swims.{end}", f"It sings all day.{end}"]
    # What precedes a trained span is exactly the prompt that the model gets at inference.
    first = sample.trained.index(True)
    assert sample.ids[:first] == template.encode(tokenizer, TALK[:2])
    assert sample.ids == template.encode(tokenizer, TALK, add_generation_prompt=False)


@torch.no_grad()
def test_heldout_loss_is_plain_counting(tokenizer: Tokenizer) -> None:
    """Nats of the assistant's tokens over their number: batches of different sizes weigh by tokens."""
    template = ChatTemplate.builtin("v3")
    long = [*TALK[:2], {"role": "assistant", "content": "It swims in the deep sea all day long and sings."}]
    samples = [encode_dialogue(talk, template, tokenizer) for talk in (TALK, long, TALK[:3])]
    length = max(len(s.ids) for s in samples)
    data = DialogueDataset(samples, rows=1, length=length, seed=0, pad=0)
    assert len(data.packed) >= 2
    config = ModelConfig(**MODEL).replace(vocab_size=tokenizer.vocab_size)
    model = DeepseekV3(config, dtype=torch.float32).init_weights(torch.Generator().manual_seed(0)).eval()
    total, count = 0.0, 0
    for sample in samples:
        logp = model(torch.tensor([sample.ids]))[0].double().log_softmax(-1)
        for i in range(1, len(sample.ids)):
            if sample.trained[i]:
                total -= float(logp[i - 1, sample.ids[i]])
                count += 1
    assert heldout_loss(nats_of(model), data, 99)["mean"] == pytest.approx(total / count, rel=1e-5)


def test_turns_after_the_last_answer_are_dropped(tokenizer: Tokenizer) -> None:
    template = ChatTemplate.builtin("v3")
    assert encode_dialogue(TALK[:4], template, tokenizer) == encode_dialogue(TALK[:3], template, tokenizer)
    assert encode_dialogue(TALK[:2], template, tokenizer).ids == []


@pytest.mark.parametrize(
    ("record", "words"),
    [({}, "no list 'messages'"), ({"messages": "hi"}, "no list 'messages'"), ({"messages": []}, "at least one message"),
     ({"messages": [{"content": "x"}]}, "role"), ({"messages": ["x"]}, "message 0"),
     ({"messages": [{"role": "user", "content": 5}]}, "content"),
     ({"messages": [{"role": "assistant", "content": "x"}]}, "starts with the assistant")],
)  # fmt: skip
def test_wrong_dialogues_name_the_line(tokenizer: Tokenizer, tmp_path: Path, record: object, words: str) -> None:
    path = tmp_path / "sft.jsonl"
    path.write_text(json.dumps({"messages": TALK}) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(UserError) as error:
        load_samples(str(path), ChatTemplate.builtin("v3"), tokenizer)
    assert f"{path} line 2" in str(error.value) and words in str(error.value)
