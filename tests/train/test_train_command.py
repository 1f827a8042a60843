"""`fathom train` from recipe to checkpoint on a tiny corpus, and a table of things that people get wrong."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from parallel.distributed import run
from parallel_bodies import command, command_lost
from tiny_workshop import Workshop, text, write

from fathom import cli
from fathom.checkpoint.reader import load_model
from fathom.checkpoint.store import read_whole
from fathom.runtime import UserError, locked
from fathom.text.batch import IGNORE, digest
from fathom.text.chat import ChatTemplate
from fathom.text.tokenizer import Tokenizer
from fathom.train.balance import gates
from fathom.train.config import TrainConfig
from fathom.train.export import export_run
from fathom.train.pretrain import batches
from fathom.train.sft import dialogues, documents, with_text


def test_pretraining(done: Workshop) -> None:
    records = done.log("pretrain")
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6] and records[-1]["tokens"] == 6 * 4 * 16
    held = [r["heldout"] for r in records if "heldout" in r]
    assert [set(h) for h in held] == [{"s0", "s1", "mean"}] * 2
    assert held[1]["mean"] < held[0]["mean"] < 20
    assert min(held[0]["s0"], held[0]["s1"]) <= held[0]["mean"] <= max(held[0]["s0"], held[0]["s1"])


def test_the_export_is_the_last_checkpoint(done: Workshop) -> None:
    for kind in ("pretrain", "sft"):
        model = load_model(done.folder / kind / "export", dtype="float32")
        newest = dict(read_whole(done.folder / kind / "checkpoints" / "step-00000006"))
        mine = {f"model.{n}": p.detach() for n, p in model.named_parameters()}
        mine |= {f"router_bias.{i}": gate.e_score_correction_bias for i, gate in enumerate(gates(model))}
        assert mine.keys() == {n for n in newest if not n.startswith("optim.")}
        assert all(torch.equal(t, newest[n]) for n, t in mine.items()) and len(gates(model)) == 3
        assert (done.folder / kind / "export" / "tokenizer.json").exists()


def test_several_processes(done: Workshop, tmp_path: Path) -> None:
    """What torchrun starts: the same command on every rank trains together, resumes one process's run, exports once."""
    argv = ["train", "pretrain", str(done.folder / "pretrain.toml"), "--parallel.expert", "2", "--run.out"]
    ended = run(2, command, *argv, str(tmp_path / "two"), folder=tmp_path, limit=300.0)
    assert [rank.code for rank in ended.values()] == [0, 0], ended
    assert ended[0].err.count("done: ") == 1 and ended[1].err == "" and "step      6/6" in ended[0].err
    log = [json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    for mine, theirs in zip(log, done.log("pretrain"), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine.get("heldout") == pytest.approx(theirs.get("heldout"), abs=2e-4)
    one, two = (
        load_model(folder / "export", dtype="float32") for folder in (done.folder / "pretrain", tmp_path / "two")
    )
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_mistake_is_said_once(done: Workshop, tmp_path: Path) -> None:
    argv = ["train", "pretrain", str(done.folder / "pretrain.toml"), "--run.out", str(tmp_path / "run")]
    ended = run(2, command, *argv, "--parallel.pipeline", "3", folder=tmp_path, limit=300.0)
    assert [rank.code for rank in ended.values()] == [2, 2]
    assert ended[0].err.count("fathom: error: ") == 1 and "parallel.pipeline 3" in ended[0].err and not ended[1].err


def test_a_run_folder_belongs_to_one_run(done: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    argv = ["train", "pretrain", str(done.folder / "pretrain.toml"), "--run.out", str(out)]
    with locked(out, "somebody"):
        assert cli.main(argv) == 2
        assert f"another run is writing to {out}" in capsys.readouterr().err
    assert not out.exists()  # nothing was left behind
    assert cli.main([*argv, "--data.train", str(tmp_path / "nothing.jsonl")]) == 2
    assert not out.exists()


def test_an_export_replaces_nothing_unasked(done: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "thesis.tex").write_text("years")
    argv = ["train", "export", str(done.folder / "pretrain"), "--to", str(tmp_path / "there")]
    assert cli.main(argv) == 2 and "give --overwrite" in capsys.readouterr().err
    assert cli.main([*argv, "--overwrite"]) == 0
    with pytest.raises(UserError, match=r"is the folder of a training run, not a model; give .*/export"):
        load_model(done.folder / "pretrain")


def test_any_checkpoint_can_be_exported(done: Workshop, tmp_path: Path) -> None:
    run = done.folder / "pretrain"
    folder = export_run(run, tmp_path / "fourth", dtype="fp32", step=4)
    older = dict(read_whole(run / "checkpoints" / "step-00000004"))
    head = load_model(folder, dtype="float32").lm_head.weight
    assert torch.equal(head, older["model.lm_head.weight"])
    assert not torch.equal(head, load_model(run / "export", dtype="float32").lm_head.weight)
    with pytest.raises(UserError, match=r"kept no average .*optim\.ema_decay"):
        export_run(run, tmp_path / "average", dtype="fp32", ema=True)
    with pytest.raises(UserError, match="no complete checkpoint"):
        export_run(
            shutil.copytree(run, tmp_path / "run", ignore=lambda *_: ["checkpoints"]), tmp_path / "x", dtype="fp32"
        )


def test_fields_of_others_in_a_checkpoints_config_are_no_other_model(done: Workshop, tmp_path: Path) -> None:
    start = shutil.copytree(done.folder / "pretrain" / "export", tmp_path / "start")
    config = json.loads((start / "config.json").read_text()) | {"attention_dropout": 0.0, "ep_size": 1}
    (start / "config.json").write_text(json.dumps(config))
    flags = ["--run.init-from", str(start), "--run.out", str(tmp_path / "run"), "--run.steps", "1"]
    assert done.train("sft", *flags) == 0


def test_an_sft_export_brings_the_template_it_was_trained_on(done: Workshop, tmp_path: Path) -> None:
    assert not (done.folder / "pretrain" / "export" / "chat_template.jinja").exists()
    flags = ["--data.template", "v3.1", "--run.out", str(tmp_path / "run"), "--run.steps", "1"]
    assert done.train("sft", *flags) == 0
    for folder, format in ((done.folder / "sft", "v3"), (tmp_path / "run", "v3.1")):
        own = ChatTemplate.from_pretrained(folder / "export")
        assert not own.note and own.source == ChatTemplate.builtin(format).source


def test_tied_embeddings_are_exported(done: Workshop, tmp_path: Path) -> None:
    recipe = (done.folder / "pretrain.toml").read_text().replace("[model]", "[model]\ntie_word_embeddings = true", 1)
    (tmp_path / "tied.toml").write_text(recipe)
    flags = ["--run.out", str(tmp_path / "run"), "--run.steps", "2"]
    assert cli.main(["train", "pretrain", str(tmp_path / "tied.toml"), *flags]) == 0
    model = load_model(tmp_path / "run" / "export", dtype="float32")
    newest = dict(read_whole(tmp_path / "run" / "checkpoints" / "step-00000002"))
    assert model.lm_head.weight is model.embed_tokens.weight
    assert torch.equal(model.embed_tokens.weight, newest["model.embed_tokens.weight"])


def test_the_average_is_exported(done: Workshop, tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    assert done.train("pretrain", "--run.out", run_dir, "--optim.ema_decay", "0.5", "--run.steps", "2") == 0
    stored = dict(read_whole(tmp_path / "run" / "checkpoints" / "step-00000002"))
    assert not torch.equal(stored["ema.lm_head.weight"], stored["model.lm_head.weight"])
    for kind, flags in (("model", []), ("ema", ["--ema"])):
        argv = ["train", "export", run_dir, "--to", str(tmp_path / kind), "--dtype", "fp32", *flags]
        assert cli.main(argv) == 0
        head = load_model(tmp_path / kind, dtype="float32").lm_head.weight
        assert torch.equal(head, stored[f"{kind}.lm_head.weight"])


@pytest.mark.parametrize(("how", "code"), [("killed", -9), ("asleep", 1)])
def test_a_lost_rank_is_named(done: Workshop, tmp_path: Path, how: str, code: int) -> None:
    argv = ["train", "pretrain", str(done.folder / "pretrain.toml"), "--run.out", str(tmp_path / "run")]
    argv += ["--parallel.timeout_s", "15"]
    ended = run(2, command_lost, 3, how, *argv, folder=tmp_path, limit=150.0)
    assert (ended[0].code, ended[1].code) == (1, code), ended
    assert ended[0].err.count("fathom: error") == 1 and "rank 1 (process " in ended[0].err


def test_an_export_brings_its_tokenizer(done: Workshop, tmp_path: Path) -> None:
    """A relative data.tokenizer of a run that was started elsewhere."""
    run = shutil.copytree(done.folder / "pretrain", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["tokenizer"] = "data/gone"
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"data/gone has no tokenizer\.json"):
        export_run(run, tmp_path / "out", dtype="fp32")
    assert not (tmp_path / "out").exists()


def test_micro_batches_may_change_between_start_and_resume(done: Workshop, tmp_path: Path) -> None:
    run = shutil.copytree(done.folder / "pretrain", tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    assert done.train("pretrain", "--run.out", str(run), "--data.micro-rows", "4") == 0
    last = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()][-1]
    assert last["step"] == 6 and last["loss"] == pytest.approx(done.log("pretrain")[-1]["loss"], rel=1e-5)


def test_long_rows_divide_over_the_ranks_or_are_refused(done: Workshop) -> None:
    """Before the first step, not when their turn comes."""
    recipe = TrainConfig.from_toml(done.folder / "pretrain.toml")
    tokens = done.folder / "pretrain" / "tokens" / "train"
    tokenizer = Tokenizer.from_pretrained(done.folder / "tokenizer")
    data = dataclasses.replace(recipe.data, long_length=32, micro_rows=1)
    config = dataclasses.replace(recipe, data=data)
    with pytest.raises(UserError, match=r"2 rows of a step do not divide over 4 data ranks"):
        batches(config, tokens, tokenizer, 4)
    deep = dataclasses.replace(config.parallel, pipeline=2, schedule="dualpipev")
    with pytest.raises(UserError, match="dualpipev"):
        batches(dataclasses.replace(config, parallel=deep), tokens, tokenizer, 1)


def test_long_dialogues_are_counted(done: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": text(1) * 5}]}
    talks = (done.folder / "sft.jsonl").read_text() + json.dumps(long) + "\n"
    (tmp_path / "talks.jsonl").write_text(talks)
    flags = ["--data.train", str(tmp_path / "talks.jsonl"), "--run.out", str(tmp_path / "run"), "--run.steps", "1"]
    assert done.train("sft", *flags) == 0
    assert "1 of 41 dialogues are left out" in capsys.readouterr().err


def test_sft_starts_from_the_pretrained_weights(done: Workshop) -> None:
    first, last = done.log("pretrain")[0], done.log("sft")[0]
    assert first["loss"] > 5.5 and last["loss"] < first["loss"]
    assert "heldout" in done.log("sft")[-1]


def test_sft_with_pretraining_text_mixed_in(done: Workshop, tmp_path: Path) -> None:
    """A third of the rows is text, one segment and trained on everywhere; the others are dialogues, in their order."""
    mixed = ["--data.text", str(done.folder / "train.jsonl"), "--data.text-share", "0.34"]
    assert done.train("sft", *mixed, "--run.out", str(tmp_path / "mixed")) == 0
    config = TrainConfig.from_dict(json.loads((tmp_path / "mixed" / "config.json").read_text()))
    model, tokenizer = config.model_config(), Tokenizer.from_pretrained(done.folder / "tokenizer")
    plain = dialogues(config, config.data.train, model, tokenizer, rows=1)
    data = with_text(config, plain, model, tokenizer)
    text, talks = 0, 0
    for row in (data.batch(step).rows(r, r + 1) for step in range(6) for r in range(4)):
        assert row.segments is not None
        if bool((row.labels != IGNORE).all()):
            wanted = documents(config, model, tokenizer).batch(text)
            assert torch.equal(row.tokens, wanted.tokens) and torch.equal(row.labels, wanted.labels)
            assert not row.segments.any()
            text += 1
        else:
            assert digest(row) == digest(plain.batch(talks))
            talks += 1
    assert (text, talks) == (8, 16)


def test_text_of_sft_must_be_there(done: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = ["--data.text", str(tmp_path / "gone.jsonl"), "--data.text-share", "0.5", "--run.out", str(tmp_path / "run")]
    assert done.train("sft", *gone) == 2
    assert "gone.jsonl" in capsys.readouterr().err


def test_a_finished_run_runs_again_without_a_step(done: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    before = (done.folder / "pretrain" / "log.jsonl").read_bytes()
    assert done.train("pretrain") == 0
    assert (done.folder / "pretrain" / "log.jsonl").read_bytes() == before
    err = capsys.readouterr().err
    assert "resumed from" in err and "at step 6" in err and "done:" in err


def test_long_rows_come_last(done: Workshop) -> None:
    """Twice as long, half as many, from the switch on; a batch is still a pure function of the step."""
    recipe = TrainConfig.from_toml(done.folder / "pretrain.toml")
    late = {"long_length": 32, "long_fraction": 0.5}
    config = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, **late))
    tokens = done.folder / "pretrain" / "tokens" / "train"
    tokenizer = Tokenizer.from_pretrained(done.folder / "tokenizer")
    plain, staged, again = (batches(c, tokens, tokenizer, 1) for c in (recipe, config, config))
    assert [tuple(staged.batch(i).tokens.shape) for i in range(6)] == [(4, 16)] * 3 + [(2, 32)] * 3
    assert [digest(again.batch(i)) for i in (5, 0, 3)] == [digest(staged.batch(i)) for i in (5, 0, 3)]
    assert digest(staged.batch(2)) == digest(plain.batch(2))


def test_dry_run(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    """The resolved recipe and what it would take; nothing is read or written."""
    flags = ("--dry-run", "--run.steps", "10", "--balance.gamma", "0", "--parallel.expert", "2")
    assert workshop.train("pretrain", *flags, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    plan = said["plan"]
    assert said["run"]["steps"] == 10 and said["balance"]["gamma"] == 0 and plan["tokens"] == 10 * 4 * 16
    assert plan["parameters"]["total"] + plan["parameters"]["mtp"] == count_parameters(said)
    assert plan["training_flops"] > 0 and plan["layout"]["expert"] == plan["layout"]["data"] == 2
    assert workshop.train("pretrain", *flags) == 0
    assert "expert" in capsys.readouterr().out
    assert workshop.train("pretrain", "--json") == 2 and "--dry-run" in capsys.readouterr().err
    assert not (workshop.folder / "pretrain").exists()


def count_parameters(said: dict[str, Any]) -> int:
    from fathom.model.transformer import DeepseekV3
    from fathom.train.config import TrainConfig

    config = TrainConfig(model=said["model"]).model_config()
    return sum(p.numel() for p in DeepseekV3(config, device="meta").parameters()) + sum(
        b.numel() for b in DeepseekV3(config, device="meta").buffers()
    )


def break_file(name: str, content: str):  # type: ignore[no-untyped-def]
    return lambda w: (w.folder / name).write_text(content)


MISTAKES: dict[str, tuple[Any, list[str], list[str]]] = {  # what was done before, command, words of the answer
    "no kind": (None, ["train"], ["pretrain", "sft"]),
    "unknown kind": (None, ["train", "pretrian", "x.toml"], ["'pretrian'"]),
    "no recipe": (None, ["train", "pretrain"], ["recipe"]),
    "missing recipe": (None, ["train", "pretrain", "none.toml"], ["none.toml", "No such file"]),
    "recipe is a folder": (None, ["train", "pretrain", "."], ["directory"]),
    "no out": (None, ["pretrain", "--run.out", ""], ["run.out is empty"]),
    "unknown flag": (None, ["pretrain", "--run.stepz", "3"], ["--run.stepz"]),
    "bad value": (None, ["pretrain", "--run.steps", "0"], ["run.steps is 0"]),
    "no corpus": (None, ["pretrain", "--data.train", "gone.jsonl"], ["gone.jsonl", "does not exist"]),
    "empty corpus path": (None, ["pretrain", "--data.train", ""], ["data.train is empty"]),
    "corpus is a folder": (None, ["pretrain", "--data.train", "."], ["meta.json"]),
    "rate above one": (None, ["pretrain", "--data.fim-rate", "2"], ["data.fim_rate is 2"]),
    "batch does not divide": (None, ["pretrain", "--data.micro-rows", "3"], ["data.batch_rows 4", "data.micro_rows 3"]),
    "pipeline on one process": (None, ["pretrain", "--parallel.pipeline", "2"], ["parallel.pipeline"]),
    "fsdp2 alone": (None, ["pretrain", "--parallel.sharding", "fsdp2"], ["fsdp2", "parallel.data is 1"]),
    "empty corpus": (break_file("train.jsonl", ""), ["pretrain"], ["no source"]),
    "broken corpus": (break_file("train.jsonl", '{"source": "a"\n'), ["pretrain"], ["line 1", "not JSON"]),
    "corpus of dialogues": (break_file("train.jsonl", '{"messages": []}\n'), ["pretrain"], ["line 1", "text"]),
    "no held-out": (None, ["pretrain", "--data.heldout", "gone.jsonl"], ["gone.jsonl", "does not exist"]),
    "corpus too small": (None, ["pretrain", "--data.sequence-length", "64", "--data.train", "{w}/one.jsonl"], ["64"]),
    "no tokenizer": (None, ["pretrain", "--data.tokenizer", "gone"], ["gone/tokenizer.json", "does not exist"]),
    "empty tokenizer": (None, ["pretrain", "--data.tokenizer", ""], ["data.tokenizer is empty"]),
    "broken tokenizer": (break_file("tokenizer/tokenizer.json", "{}"), ["pretrain"], ["tokenizer.json"]),
    "tokenizer above vocab": ("small", ["pretrain"], ["320 ids", "only 300 rows"]),
    "row above context": (None, ["pretrain", "--data.sequence-length", "257"], ["257", "max_position_embeddings 256"]),
    "long row above context": (None, ["pretrain", "--data.long-length", "512"], ["512"]),
    "long row does not divide": (None, ["pretrain", "--data.long-length", "24"], ["data.long_length 24", "64 tokens"]),
    "unknown weight": ("weight", ["pretrain"], ["data.weights", "books"]),
    "unknown preset": (None, ["pretrain", "--preset", "whale"], ["'whale'"]),
    "out is a file": (None, ["pretrain", "--run.out", "{w}/train.jsonl"], ["train.jsonl"]),
    "init_from gone": (None, ["pretrain", "--run.init-from", "{w}/gone"], ["gone"]),
    "sft without start": (None, ["sft", "--run.init-from", ""], ["run.init_from is empty"]),
    "sft start gone": (None, ["sft"], ["pretrain/export"]),
    "another tokenizer": ("done", ["sft", "--run.out", "{w}/new", "--data.tokenizer", "{w}/swapped"], ["ids, such as"]),
    "sft unknown template": (None, ["sft", "--data.template", "v9"], ["v9", "v3.1"]),
    "sft text without its share": (None, ["sft", "--data.text", "{w}/train.jsonl"], ["belong together"]),
    "pretrain with sft's text": (
        None, ["pretrain", "--data.text", "{w}/train.jsonl", "--data.text-share", "0.5"], ["data.text has no effect"],
    ),
    "sft weights without text": (None, ["sft", "--data.fim-rate", "0.1"], ["fim_rate has no effect", "data.text"]),
    "sft long rows": (None, ["sft", "--data.long-length", "32"], ["long_length has no effect in SFT"]),
    "pretrain with a template": (None, ["pretrain", "--data.template", "v3.1"], ["data.template has no effect"]),
    "another model than the start's": ("done", ["sft", "--preset", "v3-671b"], ["another model", "different: "]),
    "extension keys": (None, ["pretrain", "--extend.factor", "8"], ["extend.factor has no effect in pretraining"]),
    "extension keys in sft": (None, ["sft", "--extend.long-share", "0.5"], ["extend.long_share has no effect in SFT"]),
    "dry run of what sft refuses": (None, ["sft", "--run.init-from", "", "--dry-run"], ["run.init_from is empty"]),
    "not a text": (
        lambda w: (w.folder / "pretrain.toml").write_bytes(b"# caf\xe9\n"), ["pretrain"], ["pretrain.toml", "UTF-8"],
    ),
    "release not finished": (None, ["release", "--to", "{w}/out"], ["finish"]),
    "release without --to": (None, ["release"], ["--to"]),
}  # fmt: skip


def swap_ids(tokenizer: Path, to: Path) -> None:
    """The same tokenizer, but for two letters that have each other's ids."""
    shutil.copytree(tokenizer, to)
    content = json.loads((to / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (to / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize("name", list(MISTAKES))
def test_mistakes_are_one_line(workshop: Workshop, capsys: pytest.CaptureFixture[str], name: str) -> None:
    prepare, argv, words = MISTAKES[name]
    write(workshop.folder / "one.jsonl", [{"source": "a", "text": "the little fish"}])
    recipe = workshop.folder / "pretrain.toml"
    if prepare == "small":
        recipe.write_text(recipe.read_text().replace("vocab_size = 320", "vocab_size = 300"))
    elif prepare == "weight":
        recipe.write_text(recipe.read_text() + "\n[data.weights]\nbooks = 2.0\n")
    elif prepare == "done":
        assert workshop.train("pretrain", "--run.steps", "1") == 0
        swap_ids(workshop.folder / "tokenizer", workshop.folder / "swapped")
        capsys.readouterr()
    elif prepare:
        prepare(workshop)
    argv = [a.replace("{w}", str(workshop.folder)) for a in argv]
    if argv[0] == "train":
        code = cli.main(argv)
    elif argv[0] == "release":
        code = cli.main(["train", "release", str(workshop.folder / "sft"), *argv[1:]])
    else:
        code = workshop.train(*argv)
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.startswith("fathom: error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err
    assert prepare == "done" or not list(workshop.folder.glob("*/export/*"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"source": "a", "text": "b"}', "its fields are source, text"),
        ('{"messages": [{"role": "boss", "content": "x"}]}', "boss"),
    ],
)
def test_wrong_dialogues(
    done: Workshop, capsys: pytest.CaptureFixture[str], tmp_path: Path, line: str, words: str
) -> None:
    (tmp_path / "bad.jsonl").write_text(line + "\n")
    code = done.train("sft", "--data.train", str(tmp_path / "bad.jsonl"), "--run.out", str(tmp_path / "run"))
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and "bad.jsonl line 1" in err and words in err


def test_sft_tokenizer_above_vocab(done: Workshop, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from fathom.text.bpe import train_bpe

    train_bpe([text(i) for i in range(40)], 325, tmp_path / "tokenizer")
    code = done.train("sft", "--data.tokenizer", str(tmp_path / "tokenizer"), "--run.out", str(tmp_path / "run"))
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and "325 ids" in err and "only 320 rows" in err
