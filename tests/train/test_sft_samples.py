"""Which tokens of a dialogue are trained: what the assistant says, its end token, nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import MODEL

from fathom.config import ModelConfig
from fathom.model.transformer import DeepseekV3
from fathom.runtime import UserError
from fathom.text.chat import BUILTIN, ChatTemplate
from fathom.text.chat_messages import normalize_messages
from fathom.text.dataset import DialogueDataset, Sample
from fathom.text.dialogues import Dialogue, read_dialogues
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


def dialogue(messages: list[dict[str, Any]]) -> Dialogue:
    return Dialogue(normalize_messages(messages), [m["role"] == "assistant" for m in messages])


def encoded(messages: list[dict[str, Any]], template: ChatTemplate, tokenizer: Tokenizer) -> Sample:
    (sample,) = encode_dialogue(dialogue(messages), template, tokenizer)
    return sample


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(tokenizer_folder)


@pytest.mark.parametrize("name", list(BUILTIN))
def test_only_the_assistant_is_trained(tokenizer: Tokenizer, name: str) -> None:
    template = ChatTemplate.builtin(name)
    sample = encoded(TALK, template, tokenizer)
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
    samples = [encoded(talk, template, tokenizer) for talk in (TALK, long, TALK[:3])]
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
    assert encoded(TALK[:4], template, tokenizer) == encoded(TALK[:3], template, tokenizer)
    assert encode_dialogue(dialogue(TALK[:2]), template, tokenizer) == []


@pytest.mark.parametrize(
    ("record", "words"),
    [({}, "no messages, conversations"), ({"messages": "hi"}, "messages is no list"),
     ({"messages": []}, "at least one message"),
     ({"messages": [{"content": "x"}]}, "role"), ({"messages": ["x"]}, "messages is no list of objects"),
     ({"messages": [{"role": "user", "content": 5}]}, "content"),
     ({"messages": [{"role": "assistant", "content": "x"}]}, "starts with the assistant")],
)  # fmt: skip
def test_wrong_dialogues_name_the_line(tokenizer: Tokenizer, tmp_path: Path, record: object, words: str) -> None:
    path = tmp_path / "sft.jsonl"
    path.write_text(json.dumps({"messages": TALK}) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(UserError) as error:
        load_samples(str(path), ChatTemplate.builtin("v3"), tokenizer)
    assert f"{path} line 2" in str(error.value) and words in str(error.value)


SAID = "It swims.", "It sings all day."
BARE = [{k: v for k, v in m.items()} for m in TALK[1:]]
SHAREGPT = [{"from": {"user": "human", "assistant": "gpt"}[m["role"]], "value": m["content"]} for m in BARE]
SAME = {
    "messages": {"messages": TALK},
    "a system of its own": {"messages": BARE, "system": "Be kind."},
    "ShareGPT": {"conversations": SHAREGPT, "system": "Be kind.", "id": 7},
    "ShareGPT with a system turn": {"conversations": [{"from": "system", "value": "Be kind."}, *SHAREGPT]},
    "prompt and completion": {"prompt": [*TALK[:2], TALK[2] | {"weight": 1}, TALK[3]], "completion": [TALK[4]]},
    "Alpaca": {"instruction": TALK[3]["content"], "input": "", "output": SAID[1], "system": "Be kind.",
               "history": [[TALK[1]["content"], SAID[0]]]},
}  # fmt: skip


@pytest.mark.parametrize("row", SAME.values(), ids=SAME)
def test_every_shape_gives_the_same_tokens(tokenizer: Tokenizer, tmp_path: Path, row: dict[str, Any]) -> None:
    path = tmp_path / "data.json"
    path.write_text("\ufeff" + json.dumps([row]))
    template = ChatTemplate.builtin("v3.1")
    samples, note = load_samples(str(path), template, tokenizer)
    assert samples == [encoded(TALK, template, tokenizer)]
    assert "1 dialogues" in note and ("fields not used: id" in note) == ("id" in row)


def test_empty_lines_and_a_byte_order_mark_are_passed_over(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\ufeff" + json.dumps({"messages": TALK}) + "\n\n  \n" + json.dumps({"messages": TALK}) + "\n\n")
    assert len(load_samples(str(path), ChatTemplate.builtin("v3"), tokenizer)[0]) == 2
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(UserError, match=r"data\.jsonl line 6: it has no messages"):
        read_dialogues(path)


@pytest.mark.parametrize("mask", [{"weight": 0}, {"loss": False}, {"weight": 0.0, "loss": False}])
def test_masked_answers_are_read_and_not_trained_on(tokenizer: Tokenizer, tmp_path: Path, mask: dict[str, Any]) -> None:
    path, template = tmp_path / "data.jsonl", ChatTemplate.builtin("v3")
    path.write_text(json.dumps({"messages": [*TALK[:2], TALK[2] | mask, *TALK[3:]]}))
    ((sample,), note) = load_samples(str(path), template, tokenizer)
    whole = encoded(TALK, template, tokenizer)
    kept = tokenizer.decode([i for i, keep in zip(sample.ids, sample.trained, strict=True) if keep])
    assert sample.ids == whole.ids and kept == SAID[1] and "1 answers not trained on" in note


@pytest.mark.parametrize("name", list(BUILTIN))
@pytest.mark.parametrize("inline", [False, True])
def test_thoughts_are_trained_on_as_they_are_generated(
    tokenizer: Tokenizer, tmp_path: Path, name: str, inline: bool
) -> None:
    """Behind the prompt that asks for a thought; a later turn, whose history has none, is a sample of its own."""
    answer: dict[str, Any] = {"role": "assistant", "content": SAID[0], "reasoning_content": "the sea"}
    if inline:
        answer = {"role": "assistant", "content": f"<think>\nthe sea\n</think>\n\n{SAID[0]}"}
    path, template = tmp_path / "data.jsonl", ChatTemplate.builtin(name)
    path.write_text(json.dumps({"messages": [*TALK[:2], answer, *TALK[3:]]}))
    samples, note = load_samples(str(path), template, tokenizer)
    assert len(samples) == 2 and "1 answers with a thought" in note
    first, second = samples
    prompt = template.encode(tokenizer, TALK[:2], thinking=True)
    assert first.ids[: len(prompt)] == prompt and first.trained == [False] * len(prompt) + [True] * (
        len(first.ids) - len(prompt)
    )
    said = tokenizer.decode(first.ids[len(prompt) :], skip_special=False)
    assert template.parse_assistant(said, thinking=True) == {
        "role": "assistant", "content": SAID[0], "reasoning_content": "the sea"
    }  # fmt: skip
    assert second.ids == encoded(TALK, template, tokenizer).ids
    kept = tokenizer.decode([i for i, keep in zip(second.ids, second.trained, strict=True) if keep])
    assert kept == SAID[1]


def test_sharegpt_calls(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": '{"name": "look", "arguments": {"city": "Bern"}}'},
        {"from": "observation", "value": "Rain."},
        {"from": "gpt", "value": "It rains."},
    ]
    tools = json.dumps([{"type": "function", "function": {"name": "look", "parameters": {}}}])
    (tmp_path / "data.jsonl").write_text(json.dumps({"conversations": turns, "tools": tools}))
    ((_, talk),) = read_dialogues(tmp_path / "data.jsonl").rows
    assert [m["role"] for m in talk.messages] == ["user", "assistant", "tool", "assistant"]
    assert talk.messages[1]["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"city": "Bern"}'}
    assert talk.tools is not None and talk.tools[0]["function"]["name"] == "look"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [TALK[1], TALK[2] | {"weight": 0.5}]}, "message 1: weight is 0.5"),
        ({"messages": [TALK[1] | {"loss": True}, TALK[2]]}, "trains on the assistant's turns alone"),
        ({"messages": TALK, "system": "Be cruel."}, "a system text of its own and a system message"),
        ({"messages": TALK, "weight": 2}, "field 'weight' of a whole dialogue"),
        ({"messages": TALK, "rejected": "no"}, "field 'rejected' of a whole dialogue"),
        ({"messages": TALK, "tools": "[{"}, "tools is a text that is not JSON"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "conversations[0] is from 'narrator'"),
        ({"conversations": [{"from": "function_call", "value": "x"}]}, "no function call in JSON"),
        ({"text": "x"}, "its fields are text"),
        ({"messages": TALK[:2]}, "no assistant turn in 1 dialogues"),
        ({"messages": [TALK[1], TALK[2] | {"weight": 0}]}, "marked as not to be trained on"),
        ({"messages": [TALK[1], {"role": "assistant", "content": "<think>hm"}]}, "never closes it"),
        ({"messages": [TALK[1], TALK[2] | {"reasoning": "a", "thinking": "b"}]}, "its thought twice"),
        ({"messages": [TALK[1], TALK[2] | {"reasoning": "a"}]}, "leaves thoughts out"),
        ({"messages": [TALK[1] | {"thinking": "a"}, TALK[2]]}, "a thought stands in a turn of 'user'"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, row: dict[str, Any], words: str
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(row))
    plain = ChatTemplate(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    with pytest.raises(UserError) as error:
        load_samples(str(path), plain, tokenizer)
    assert words in str(error.value) and str(path) in str(error.value)
