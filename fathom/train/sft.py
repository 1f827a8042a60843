"""`fathom train sft RECIPE`: dialogues -> chat format -> the same loop, training only what the assistant says.

Samples are packed into rows but masked from each other (report section 5.1). Trained on: the assistant's words and the
end token; not on system and user text, nor on the tokens that open a turn. With data.text a share of the rows are
pretraining documents, trained on as in pretraining: a small model forgets its English over dialogues alone (LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fathom.config import ModelConfig
from fathom.parallel.mesh import Mesh
from fathom.runtime import UserError, progress
from fathom.text.chat import ChatTemplate
from fathom.text.chat_messages import normalize_messages
from fathom.text.dataset import IGNORE, DialogueDataset, Sample, read_jsonl
from fathom.text.mixture import Mixture
from fathom.text.prefetch import Batches, Prefetched
from fathom.text.tokenizer import Tokenizer
from fathom.train.config import TrainConfig
from fathom.train.epochs import check_epochs
from fathom.train.evaluate import Nats
from fathom.train.export import OWN, export
from fathom.train.limits import DISTILL, EXTENSION, refuse
from fathom.train.loop import Trainer
from fathom.train.pretrain import open_tokenizer, start_model, text_rows, token_stream


def encode_dialogue(
    messages: list[dict[str, Any]],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    tools: list[dict[str, Any]] | None = None,
) -> Sample:
    """One dialogue as token ids with the assistant's turns marked; `tools`: the functions that it may call.

    Each prefix of the conversation is rendered, so that what is trained on is exactly what follows the prompt of that
    turn at inference.
    """
    ids: list[int] = []
    trained: list[bool] = []
    for position, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if position == 0:
            raise UserError("the dialogue starts with the assistant; put a user or system message before it")
        prompt = template.encode(tokenizer, messages[:position], tools=tools)
        whole = template.encode(tokenizer, messages[: position + 1], tools=tools, add_generation_prompt=False)
        if whole[: len(prompt)] != prompt or prompt[: len(ids)] != ids:
            raise UserError("the chat template changes earlier turns: this dialogue cannot be trained on turn by turn")
        trained += [False] * (len(prompt) - len(ids)) + [True] * (len(whole) - len(prompt))
        ids = whole
    return Sample(ids, trained)


def load_samples(path: str, template: ChatTemplate, tokenizer: Tokenizer) -> list[Sample]:
    """All dialogues of a JSONL file ({"messages": [...], "tools"?: [...]})."""
    samples, records = [], list(read_jsonl(path))
    with progress(f"read {Path(path).name}", len(records), "dialogues") as bar:
        for number, record in enumerate(records, 1):
            if not isinstance(record.get("messages"), list):
                raise UserError(f"{path} line {number} has no list 'messages'; SFT wants one dialogue per line")
            try:
                messages = normalize_messages(record["messages"])
                samples.append(encode_dialogue(messages, template, tokenizer, record.get("tools")))
            except UserError as error:
                raise UserError(f"{path} line {number}: {error}") from None
            bar.advance(1)
    return samples


def heldout_loss(nats: Nats, data: DialogueDataset, batches: int) -> dict[str, float]:
    """Mean loss of the assistant's tokens on held-out dialogues, in nats; "mean" for the progress line."""
    total, tokens = 0.0, 0
    for step in range(min(batches, data.steps_per_epoch)):
        batch = data.batch(step)
        total += nats(batch)
        tokens += int((batch.labels != IGNORE).sum())
    return {"mean": total / max(tokens, 1)}


def check(config: TrainConfig) -> None:
    """What SFT needs and what it does not take, before anything is read."""
    if not config.run.init_from:
        raise UserError("run.init_from is empty; SFT starts from a pretrained checkpoint")
    if config.data.template != OWN:
        ChatTemplate.builtin(config.data.template)
    refuse(config, EXTENSION, "SFT; they belong to `fathom train extend`")
    refuse(config, DISTILL, "SFT; they belong to `fathom train distill`")
    lengths = ("data.long_length", "data.ramp_from_rows")
    refuse(config, lengths, "SFT; its rows have data.sequence_length tokens, data.batch_rows of them a step")
    if not config.data.text:
        of_text = ("data.weights", "data.fim_rate", "data.split_rate", "data.generated_share", "data.max_epochs")
        refuse(config, of_text, "SFT without data.text")


def template_of(config: TrainConfig) -> ChatTemplate:
    """The chat format of the run: a built-in one, or that of the tokenizer's folder."""
    name = config.data.template
    return ChatTemplate.from_pretrained(config.data.tokenizer) if name == OWN else ChatTemplate.builtin(name)


def dialogues(
    config: TrainConfig, path: str, model: ModelConfig, tokenizer: Tokenizer, *, rows: int, everywhere: bool = False
) -> DialogueDataset:
    """The dialogues of a file, `rows` packed rows per batch. everywhere: trained on all tokens, not answers alone."""
    samples = load_samples(path, template_of(config), tokenizer)
    if everywhere:
        samples = [Sample(s.ids, [True] * len(s.ids)) for s in samples]
    length, pad = config.data.sequence_length, max(model.pad_token_id or 0, 0)
    return DialogueDataset(samples, rows=rows, length=length, seed=config.run.seed, pad=pad)


def with_text(config: TrainConfig, talks: DialogueDataset, model: ModelConfig, tokenizer: Tokenizer) -> Batches:
    """Dialogues, made a row at a time, and data.text_share of the rows pretraining text; or `talks` alone."""
    d = config.data
    if not d.text:
        return talks
    return Mixture(talks, documents(config, model, tokenizer), rows=d.batch_rows, share=d.text_share)


def documents(config: TrainConfig, model: ModelConfig, tokenizer: Tokenizer) -> Batches:
    """Rows of pretraining text, one per batch."""
    d, run = config.data, config.run
    shards = token_stream(d.tokenizer, model, d.text, Path(run.out) / "tokens" / "text")
    check_epochs(config, shards, round(run.steps * d.batch_rows * d.sequence_length * d.text_share))
    return text_rows(config, shards, tokenizer, rows=1, length=d.sequence_length, seed=run.seed)


def sft(config: TrainConfig, mesh: Mesh | None = None, tick: Callable[[], None] = lambda: None) -> Path:
    """Train to the end (or resume); returns the folder of the exported checkpoint."""
    d, run = config.data, config.run
    check(config)
    model = start_model(config)
    tokenizer = open_tokenizer(config, model.config)
    heldout = dialogues(config, d.heldout, model.config, tokenizer, rows=d.batch_rows) if d.heldout else None

    def evaluate(nats: Nats) -> dict[str, float]:
        assert heldout is not None
        return heldout_loss(nats, heldout, -(-run.eval_rows // d.batch_rows))

    talks = dialogues(config, d.train, model.config, tokenizer, rows=1 if d.text else d.batch_rows)
    unit = "nats/answer token"
    with Prefetched(with_text(config, talks, model.config, tokenizer), d.workers) as data:
        trainer = Trainer(
            config, model, data, evaluate if heldout else None, unit=unit, mesh=mesh, tick=tick, template=d.template
        )
        if talks.left_out:
            trainer.watch.note(
                f"{talks.left_out} of {talks.left_out + len(talks.samples)} dialogues are left out: more than "
                f"data.sequence_length {d.sequence_length} tokens, or none"
            )
        trainer.train()
    return export(trainer)
