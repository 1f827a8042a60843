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
from fathom.text.dataset import IGNORE, DialogueDataset, Sample
from fathom.text.dialogues import Dialogue, read_dialogues
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


def encode_dialogue(dialogue: Dialogue, template: ChatTemplate, tokenizer: Tokenizer) -> list[Sample]:
    """One dialogue as token ids with the trained turns marked.

    Each prefix of the conversation is rendered, so that what is trained on is exactly what follows the prompt of that
    turn at inference. Where a template writes earlier turns differently later on (thoughts are left out of the
    history), the later turns are a sample of their own.
    """
    samples: list[Sample] = []
    ids: list[int] = []
    trained: list[bool] = []
    messages, tools = dialogue.messages, dialogue.tools
    for position, (message, wanted) in enumerate(zip(messages, dialogue.trained, strict=True)):
        if message["role"] != "assistant":
            continue
        if position == 0:
            raise UserError("the dialogue starts with the assistant; put a user or system message before it")
        thinks = "reasoning_content" in message

        def whole_of(last: dict[str, Any], position: int = position, thinks: bool = thinks) -> list[int]:
            so_far = [*messages[:position], last]
            return template.encode(tokenizer, so_far, tools=tools, thinking=thinks, add_generation_prompt=False)

        prompt = template.encode(tokenizer, messages[:position], tools=tools, thinking=thinks)
        whole = whole_of(message)
        if whole[: len(prompt)] != prompt:
            raise UserError("the chat template changes earlier turns: this dialogue cannot be trained on turn by turn")
        if thinks and whole == whole_of({**message, "reasoning_content": ""}):
            raise UserError(
                f"message {position}: {template.name} leaves thoughts out; remove it, or name another template"
            )
        if prompt[: len(ids)] != ids:
            samples.append(Sample(ids, trained))
            ids, trained = [], []
        trained = trained + [False] * (len(prompt) - len(ids)) + [wanted] * (len(whole) - len(prompt))
        ids = whole
    return [sample for sample in (*samples, Sample(ids, trained)) if any(sample.trained)]


def load_samples(path: str, template: ChatTemplate, tokenizer: Tokenizer) -> tuple[list[Sample], str]:
    """All dialogues of a file (text/dialogues.py says in which shapes), and one line about them."""
    found = read_dialogues(path)
    samples: list[Sample] = []
    with progress(f"read {Path(path).name}", len(found.rows), "dialogues") as bar:
        for place, dialogue in found.rows:
            try:
                samples += encode_dialogue(dialogue, template, tokenizer)
            except UserError as error:
                raise UserError(f"{path} {place}: {error}") from None
            bar.advance(1)
    if not samples:
        raise UserError(f"{path}: every answer of its {len(found.rows)} dialogues is marked as not to be trained on")
    return samples, f"{path}: {found.note}"


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
    samples, note = load_samples(path, template_of(config), tokenizer)
    if everywhere:
        samples = [Sample(s.ids, [True] * len(s.ids)) for s in samples]
    length, pad = config.data.sequence_length, max(model.pad_token_id or 0, 0)
    return DialogueDataset(samples, rows=rows, length=length, seed=config.run.seed, pad=pad, note=note)


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
        trainer.watch.note(talks.note)
        if talks.left_out:
            trainer.watch.note(
                f"{talks.left_out} of {talks.left_out + len(talks.samples)} dialogues are left out: more than "
                f"data.sequence_length {d.sequence_length} tokens, or none"
            )
        trainer.train()
    return export(trainer)
