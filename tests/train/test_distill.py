"""`fathom train distill`: students come near their teachers, the cache is the teacher, bad input is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from distill_bodies import PART_TOKENS, distill_body
from parallel.distributed import run as on_ranks
from tiny_run import make_config, make_model
from tiny_workshop import Workshop

from fathom.checkpoint.reader import load_model
from fathom.checkpoint.store import read_whole
from fathom.checkpoint.writer import save_model
from fathom.runtime import UserError
from fathom.text.batch import Batch
from fathom.train import teacher_cache
from fathom.train.config import TrainConfig
from fathom.train.distill import check, distill
from fathom.train.distillation import Distillation
from fathom.train.objective import Weights
from fathom.train.teacher import Asked, load_speaker, speaker_of
from fathom.train.teacher_cache import keys_of

LENGTH = 16


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Workshop:
    """A corpus, a checkpoint to start from (pretrain/export) and another one (teacher) with the same tokenizer."""
    torch.set_num_threads(1)
    shop = Workshop(tmp_path_factory.mktemp("distill") / "w", tokenizer_folder)
    for name, seed in (("student", 1), ("teacher", 2)):
        config = make_config("unused", {"run.seed": seed}, vocab_size=320, max_position_embeddings=256)
        save_model(make_model(config), shop.folder / name, dtype="fp32", side_files_from=tokenizer_folder)
    return shop


def recipe(shop: Workshop, out: Path | str, **changes: Any) -> TrainConfig:
    tables: dict[str, dict[str, Any]] = {
        "data": {
            "train": f"{shop.folder}/train.jsonl", "heldout": f"{shop.folder}/heldout.jsonl",
            "tokenizer": f"{shop.folder}/tokenizer", "batch_rows": 4, "micro_rows": 2, "sequence_length": LENGTH,
        },
        "optim": {"peak_lr": 5e-3, "warmup_steps": 2, "decay_fraction": 0.0},
        "balance": {"mtp_lambda": 0.5, "mtp_lambda_late": 0.5},
        "precision": {"gemm": "fp32"},
        "run": {
            "out": str(out), "init_from": f"{shop.folder}/student", "steps": 6, "eval_every": 3, "eval_rows": 4,
            "checkpoint_every": 3, "log_every": 1, "train": ["mtp"],
        },
        "distill": {"top_k": 8},
    }  # fmt: skip
    for key, value in changes.items():
        table, name = key.split("__")
        tables[table][name] = value
    return TrainConfig.from_dict(tables)


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def curve(out: Path) -> list[tuple[Any, ...]]:
    return [(r["loss"], r["grad_norm"], r["mtp_loss"], r.get("heldout")) for r in log(out)]


def test_the_targets_are_the_teachers_at_the_token_that_is_predicted(shop: Workshop) -> None:
    """The loss with K = V against softmaxes by hand: main at i against i, MTP at i against the teacher at i + 1."""
    config = recipe(shop, "unused", run__train=["all"], distill__teacher="t", distill__top_k=320)
    teacher, student = (load_model(shop.folder / name) for name in ("teacher", "student"))
    teacher.requires_grad_(False)
    tokens = torch.randint(320, (2, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    segments = torch.zeros(2, LENGTH, dtype=torch.int64)
    segments[:, 9:] = 1
    labels = tokens[:, 1:].clone()
    labels[:, 8], labels[0, 3] = -100, -100
    batch = Batch(tokens[:, :-1], labels, segments)
    objective = Distillation(config, Asked(speaker_of(teacher), 320, 1.0))
    found = objective(student, batch, Weights(1, 2, 0.5, 0.0), [])
    told = F.log_softmax(teacher.logits(teacher.hidden(batch.tokens, segments=segments)), -1)
    h = student.hidden(batch.tokens, segments=segments)
    own = F.log_softmax(student.logits(h), -1)
    ahead = F.log_softmax(student.logits(student.mtp_hidden(h, batch.tokens, segments=segments)), -1)
    kl = F.kl_div(own, told, reduction="none", log_target=True).sum(-1)
    mtp = F.kl_div(ahead, told[:, 1:], reduction="none", log_target=True).sum(-1)
    mtp = mtp[(labels[:, 1:] != -100) & (segments[:, 1:] == segments[:, :-1])].sum()
    torch.testing.assert_close(found.main, kl[labels != -100].sum().detach(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.mtp[0], mtp.detach(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.total.detach(), found.main + 0.5 * found.mtp[0], rtol=1e-6, atol=0)


def test_mtp_alone_learns_from_the_cache(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The kept states are FP16: the same curve as with the model asked every time, to that."""
    assert distill(recipe(shop, tmp_path / "cached")) == tmp_path / "cached" / "export"
    said = capsys.readouterr().err
    assert "its 8 most likely of 320 tokens, forward KL" in said and "before: mtp1 kl" in said
    distill(recipe(shop, tmp_path / "asked", distill__cache=False))
    cached, asked = log(tmp_path / "cached"), log(tmp_path / "asked")
    assert [r["loss"] for r in cached] == pytest.approx([r["loss"] for r in asked], rel=2e-3)
    assert cached[-1]["heldout"].keys() == {"mtp1 kl", "mtp1 text", "mtp1 agreement", "mean"}
    assert cached[-1]["heldout"]["mean"] < cached[2]["heldout"]["mean"]
    assert (tmp_path / "cached" / "teacher" / "part-00000.bin").exists() and not (
        tmp_path / "asked" / "teacher"
    ).exists()
    before, after = load_model(shop.folder / "student"), load_model(tmp_path / "cached" / "export")
    tokens = torch.arange(40)[None]
    assert torch.equal(before(tokens), after(tokens)) and not torch.equal(
        before.mtp_logits(tokens), after.mtp_logits(tokens)
    )


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_student_comes_near_its_teacher(shop: Workshop, tmp_path: Path, direction: str) -> None:
    how = dict(run__steps=12, run__train=["all"], distill__teacher=f"{shop.folder}/teacher")
    distill(recipe(shop, tmp_path / "run", **how, distill__direction=direction, distill__temperature=1.5))
    held = [r["heldout"] for r in log(tmp_path / "run") if "heldout" in r]
    assert held[-1].keys() == {"kl", "text", "mtp1 kl", "mtp1 text", "mtp1 agreement", "mean"}
    assert held[-1]["kl"] < 0.9 * held[0]["kl"], held


def test_text_alone_is_pretraining(shop: Workshop, tmp_path: Path) -> None:
    """With text_weight 1 the teacher has no say: the loss of a pretraining run, step by step."""
    from fathom.train.pretrain import pretrain

    how = dict(run__train=["experts", "router"], data__heldout="")
    distill(recipe(shop, tmp_path / "d", **how, distill__teacher=f"{shop.folder}/teacher", distill__text_weight=1.0))
    plain = recipe(shop, tmp_path / "p", **how, distill__top_k=64)
    pretrain(plain)
    ours, theirs = log(tmp_path / "d"), log(tmp_path / "p")
    assert [r["loss"] for r in ours] == pytest.approx([r["loss"] for r in theirs], rel=1e-5)


def test_it_resumes_bit_for_bit_and_reads_its_cache(shop: Workshop, tmp_path: Path) -> None:
    how = dict(run__train=["experts", "router", "mtp"], distill__teacher=f"{shop.folder}/teacher")
    distill(recipe(shop, tmp_path / "whole", **how))
    out = tmp_path / "run"
    distill(recipe(shop, out, **how))
    teacher = {p.name: p.stat().st_mtime_ns for p in (out / "teacher").iterdir()}
    later = out / "checkpoints" / "step-00000006"
    later.rename(tmp_path / "gone")
    distill(recipe(shop, out, **how))  # goes on from step 3
    assert {p.name: p.stat().st_mtime_ns for p in (out / "teacher").iterdir()} == teacher
    wanted = dict(read_whole(tmp_path / "whole" / "checkpoints" / "step-00000006"))
    found = dict(read_whole(later))
    assert wanted.keys() == found.keys() and all(torch.equal(found[n], t) for n, t in wanted.items())
    assert curve(out)[-3:] == curve(tmp_path / "whole")[-3:]


def test_a_cache_of_something_else_is_refused(shop: Workshop, tmp_path: Path) -> None:
    out = tmp_path / "run"
    how = dict(run__train=["experts"], distill__teacher=f"{shop.folder}/teacher", run__steps=2)
    distill(recipe(shop, out, **how))
    (out / "config.json").unlink()
    for other, what in (
        ({"distill__teacher": f"{shop.folder}/student"}, "teacher"),
        ({"run__seed": 5, "data__heldout": ""}, "data"),
        ({"distill__top_k": 9}, "top_k"),
    ):
        with pytest.raises(UserError, match=rf"another run \(different: {what}"):
            distill(recipe(shop, out, **(how | other)))
    (out / "teacher" / "part-00000.bin").unlink()  # killed before it was whole
    distill(recipe(shop, out, **how))


def test_a_longer_run_asks_for_what_is_new(shop: Workshop, tmp_path: Path) -> None:
    """Rows that were asked for stay where they are; a shorter run finds all of its own."""
    out, how = tmp_path / "run", dict(run__train=["experts"], distill__teacher=f"{shop.folder}/teacher")
    sizes = []
    for steps in (3, 5, 2):
        distill(recipe(shop, out, **how, run__steps=steps))
        sizes.append((out / "teacher" / "part-00000.bin").stat().st_size)
        (out / "config.json").unlink()
        shutil.rmtree(out / "checkpoints")
    assert sizes[0] < sizes[1] == sizes[2]
    distill(recipe(shop, tmp_path / "fresh", **how, run__steps=5))
    parts = [(folder / "teacher" / "part-00000.bin").read_bytes() for folder in (out, tmp_path / "fresh")]
    assert parts[0] == parts[1]


def test_dialogues(shop: Workshop, tmp_path: Path) -> None:
    """Answers alone, or everything that is said, from the same dialogues; their chat format is exported."""
    trained = {}
    for positions in ("all", "answers"):
        how = dict(data__train=f"{shop.folder}/sft.jsonl", data__heldout=f"{shop.folder}/sft.jsonl", run__steps=2)
        out = tmp_path / positions
        distill(recipe(shop, out, **how, data__sequence_length=48, distill__positions=positions))
        trained[positions] = log(out)[-1]["heldout"]["mtp1 text"]
        assert (out / "export" / "chat_template.jinja").exists()
    assert trained["all"] != trained["answers"]


def test_rows_have_names(shop: Workshop) -> None:
    tokens = torch.arange(12).view(2, 6)
    one, two = keys_of(Batch(tokens, tokens))
    cut = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
    assert len({one, two, *keys_of(Batch(tokens, tokens, cut))}) == 4


def test_two_ranks_train_the_same(shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They share the teacher's work, its cache and the routed experts; other weights are on both."""
    monkeypatch.setattr(teacher_cache, "PART_TOKENS", PART_TOKENS)
    how = dict(run__train=["experts", "mtp"], distill__teacher=f"{shop.folder}/teacher")
    distill(recipe(shop, tmp_path / "one", **how))
    two = recipe(shop, tmp_path / "two", **how).to_dict()
    two["parallel"] |= {"expert": 2, "dispatch": "fp32"}
    (tmp_path / "ranks").mkdir()
    ended = on_ranks(2, distill_body, two, folder=tmp_path / "ranks")
    assert all(rank.code == 0 for rank in ended.values()), {r: e.err[-2000:] for r, e in ended.items()}
    for a, b in zip(log(tmp_path / "two"), log(tmp_path / "one"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-6) and a["mtp_loss"] == pytest.approx(
            b["mtp_loss"], rel=2e-6
        )
    parts = [[p.read_bytes() for p in sorted((tmp_path / n / "teacher").glob("part-*"))] for n in ("one", "two")]
    assert len(parts[0]) > 1 and parts[0] == parts[1]


def test_a_transformers_teacher(shop: Workshop) -> None:
    """The original through transformers says what our own reading of it says, packed samples included."""
    pytest.importorskip("transformers")
    student = load_model(shop.folder / "student")
    tokens = torch.randint(320, (2, 12), generator=torch.Generator().manual_seed(1))
    segments = torch.tensor([[0] * 5 + [1] * 7, [0] * 12])
    theirs = load_speaker(f"transformers:{shop.folder}/teacher", student, torch.device("cpu"))
    ours = load_speaker(f"{shop.folder}/teacher", student, torch.device("cpu"))
    for own in (None, segments):
        a, b = (Asked(s, 8, 1.0)(Batch(tokens, tokens, own)) for s in (ours, theirs))
        torch.testing.assert_close(a.log_probs, b.log_probs, rtol=1e-4, atol=1e-4)


def test_a_llama_teacher(shop: Workshop, tmp_path: Path, tokenizer_folder: Path) -> None:
    """Our plain reading of a Llama-type checkpoint says what transformers says."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    shutil.copytree(tokenizer_folder, tmp_path / "llama", dirs_exist_ok=True)
    student = load_model(shop.folder / "student")
    batch = Batch(*2 * [torch.randint(320, (2, 12), generator=torch.Generator().manual_seed(1))])
    said = []
    for kind in ("llama", "transformers"):
        speaker = load_speaker(f"{kind}:{tmp_path / 'llama'}", student, torch.device("cpu"))
        said.append(Asked(speaker, 8, 1.0)(batch))
    assert torch.equal(said[0].ids, said[1].ids)
    torch.testing.assert_close(said[0].log_probs, said[1].log_probs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run__train": ["experts"]}, "distill.teacher is empty"),
        ({"balance__mtp_lambda_late": 0.0}, "mtp_lambda_late is 0"),
        ({"run__train": ["all"], "run__init_from": "", "distill__teacher": "t"}, "run.init_from is empty"),
        ({"distill__teacher": "t", "data__long_length": 32}, "long_length has no effect"),
    ],
)
def test_refused(shop: Workshop, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check(recipe(shop, "unused", **changes))


def test_teachers_that_cannot_teach(shop: Workshop, tmp_path: Path, tokenizer_folder: Path) -> None:
    config = make_config("unused", vocab_size=400)
    save_model(make_model(config), tmp_path / "wide", dtype="fp32")
    with pytest.raises(UserError, match="400 rows in its head, the student 320"):
        distill(recipe(shop, tmp_path / "a", run__train=["all"], distill__teacher=str(tmp_path / "wide")))
    save_model(make_model(config), tmp_path / "other", dtype="fp32", side_files_from=tokenizer_folder)
    content = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="another tokenizer"):
        distill(recipe(shop, tmp_path / "b", run__train=["all"], distill__teacher=str(tmp_path / "other")))
    with pytest.raises(UserError, match=r"top_k is 999, the vocabulary has 320"):
        distill(recipe(shop, tmp_path / "c", distill__top_k=999))
