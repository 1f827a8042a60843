"""Generated text in training: which rows it takes, how often natural text is read beside it, what is refused."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tiny_workshop import Workshop, write

from fathom.runtime import UserError
from fathom.text.batch import digest
from fathom.text.chat import ChatTemplate
from fathom.text.dataset import PackedDataset, open_streams
from fathom.text.encoder import PlainEncoder
from fathom.text.generated import GeneratedRows
from fathom.text.synthetic.tool_talks import tool_dialogue
from fathom.text.tokenizer import Tokenizer
from fathom.train.config import TrainConfig
from fathom.train.epochs import check_epochs, epochs
from fathom.train.pretrain import batches, token_stream
from fathom.train.sft import load_samples


@pytest.fixture
def workshop(tmp_path: Path, tokenizer_folder: Path) -> Workshop:
    return Workshop(tmp_path / "w", tokenizer_folder)


def recipe(workshop: Workshop, **changes: Any) -> TrainConfig:
    """The tiny pretraining; `changes` by key, `data__weights` for data.weights."""
    told = TrainConfig.from_toml(workshop.folder / "pretrain.toml").to_dict()
    for key, value in changes.items():
        table, name = key.split("__")
        told[table][name] = value
    return TrainConfig.from_dict(told)


def shards(workshop: Workshop, config: TrainConfig) -> Path:
    return token_stream(config.data.tokenizer, config.model_config(), config.data.train, workshop.folder / "tokens")


def test_rows_are_packed_or_generated(workshop: Workshop) -> None:
    """Every row is the next one of its data set: over steps that grow, and in the long rows at the end."""
    changes = {"data__generated_share": 0.6, "data__generated": {"stories": 0.0}}
    ramp = {"data__ramp_from_rows": 2, "data__ramp_tokens": 8 * 16, "data__split_rate": 0.5}
    for more in (ramp, {"data__long_length": 32, "data__long_fraction": 0.5}):
        config = recipe(workshop, **changes, **more)
        folder, tokenizer = shards(workshop, config), Tokenizer.from_pretrained(config.data.tokenizer)
        data, again = (batches(config, folder, tokenizer, 1) for _ in range(2))
        made = [data.batch(step) for step in range(6)]
        assert [digest(again.batch(step)) for step in (4, 1)] == [digest(made[4]), digest(made[1])]
        if more is ramp:
            assert len(made[0].tokens) == 2 and len(made[5].tokens) == 4
        for seed, length, steps in ((0, 16, made), (1, 32, made)):
            steps = [batch for batch in steps if batch.tokens.shape[1] == length]
            noise = data.data.short.main.noise if more is not ramp else data.data.main.noise  # type: ignore[attr-defined]
            main = PackedDataset(
                open_streams(folder), rows=1, length=length, seed=config.run.seed + seed, noise=noise,
            )  # fmt: skip
            other = GeneratedRows(
                PlainEncoder(config.data.tokenizer), bos=0, eos=1, length=length, seed=config.run.seed + seed,
                weights={"stories": 0.0}, noise=noise,
            )  # fmt: skip
            rows = [batch.rows(r, r + 1) for batch in steps for r in range(len(batch.tokens))]
            before = 0 if length == 16 else 3 * 2  # the long rows begin with those of step 3
            taken = Counter({"other": math.floor(before * 0.6), "main": before - math.floor(before * 0.6)})
            for row in rows:
                kind = "main" if digest(row) == digest(main.batch(taken["main"])) else "other"
                assert digest(row) == digest({"main": main, "other": other}[kind].batch(taken[kind]))
                taken[kind] += 1
            assert abs(taken["other"] - 0.6 * (before + len(rows))) < 1


def test_a_run_with_generated_text(workshop: Workshop) -> None:
    flags = ("--data.generated-share", "0.5", "--data.workers", "1")
    assert workshop.train("pretrain", *flags) == 0
    assert len(workshop.log("pretrain")) == 6
    more = ("--data.text", str(workshop.folder / "train.jsonl"), "--data.text-share", "0.5", "--data.max-epochs", "9")
    assert workshop.train("sft", *flags, *more) == 0


def test_epochs_are_counted(workshop: Workshop) -> None:
    """The formula against the windows that a run reads."""
    weights = {"s0": 2.0, "s1": 0.5}
    config = recipe(workshop, data__generated_share=0.5, data__weights=weights, run__steps=400)
    folder = shards(workshop, config)
    tokens = 400 * 4 * 16
    data = PackedDataset(open_streams(folder), rows=2, length=16, seed=config.run.seed, weights=weights)
    read = Counter(place.source for step in range(400) for place in data.places(step))
    found = epochs(config, folder, tokens)
    for name, stream in open_streams(folder).items():
        assert found[name] == pytest.approx(16 * read[name] / len(stream), rel=0.1)


def test_too_many_epochs_are_refused_with_what_helps(workshop: Workshop) -> None:
    plan = {"data__max_epochs": 4.0, "data__generated_share": 0.5, "run__steps": 2000}

    def start(**changes: Any) -> None:
        config = recipe(workshop, **plan | changes)
        check_epochs(config, shards(workshop, config), config.run.steps * 4 * 16)

    config = recipe(workshop, **plan)
    with pytest.raises(UserError, match=r"data.max_epochs is 4"):
        batches(config, shards(workshop, config), Tokenizer.from_pretrained(config.data.tokenizer), 1)
    with pytest.raises(
        UserError, match=r"max_epochs is 4, but 2000 steps \(0\.1 M tokens\) would read s[01] "
    ) as error:
        start()
    share, steps = re.findall(r"from 0\.5 to ([\d.]+), or take no more than (\d+) steps", str(error.value))[0]
    start(data__generated_share=float(share))
    start(run__steps=int(steps))
    start(data__max_epochs=0.0)
    with pytest.raises(UserError, match="would read"):
        start(run__steps=int(steps) + 20)


@pytest.mark.parametrize(
    ("data", "words"),
    [({"generated_share": 0.5, "generated": {"book": 1.0}}, "data.generated names book, known are stories,"),
     ({"generated": {"stories": 1.0}}, "data.generated has no effect in a run without data.generated_share"),
     ({"generated_share": 1.0}, "data.generated_share is 1.0, it must be at least 0 and below 1"),
     ({"generated_share": 0.5, "generated": {"stories": -1}}, "data.generated.stories is -1, it must be at least 0"),
     ({"max_epochs": -1.0}, "data.max_epochs is -1.0")],
)  # fmt: skip
def test_mistakes(data: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        TrainConfig.from_dict({"data": data})


def test_sft_without_text_takes_no_generated_text(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    assert workshop.train("pretrain", "--run.steps", "1") == 0
    assert workshop.train("sft", "--data.generated-share", "0.5") == 2
    assert "data.generated_share has no effect in SFT without data.text" in capsys.readouterr().err


def test_dialogues_with_functions(tokenizer_folder: Path, tmp_path: Path) -> None:
    """The definitions are in the prompt, and the calls are what is trained."""

    tokenizer, template = Tokenizer.from_pretrained(tokenizer_folder), ChatTemplate.builtin("v3")
    talks = [tool_dialogue(random.Random(k)) for k in range(20)]
    samples, _ = load_samples(str(write(tmp_path / "sft.jsonl", talks)), template, tokenizer)
    for talk, sample in zip(talks, samples, strict=True):
        trained = tokenizer.decode(
            [i for i, keep in zip(sample.ids, sample.trained, strict=True) if keep], skip_special=False
        )
        rest = tokenizer.decode([i for i, keep in zip(sample.ids, sample.trained, strict=True) if not keep])
        calls = [call["function"] for message in talk["messages"] for call in message.get("tool_calls", ())]
        for call in calls:
            assert f"function<｜tool▁sep｜>{call['name']}\n```json\n{call['arguments']}\n```" in trained
        for tool in talk["tools"]:
            assert json.dumps(tool["function"])[:30] in rest and tool["function"]["description"] not in trained
    (plain,), _ = load_samples(
        str(write(tmp_path / "plain.jsonl", [{"messages": talks[0]["messages"]}])), template, tokenizer
    )
    assert len(plain.ids) < len(samples[0].ids) and sum(plain.trained) == sum(samples[0].trained)
