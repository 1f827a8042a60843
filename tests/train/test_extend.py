"""Long-context extension: YaRN as the report sets it, data, evaluation by length, tiny extensions end to end."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parallel.distributed import run
from parallel_bodies import extend_on_ranks
from safetensors.torch import load_file
from tiny_run import MODEL, make_config

from fathom.checkpoint.reader import load_model
from fathom.checkpoint.writer import save_model
from fathom.commands.train import main as train_command
from fathom.config import ModelConfig
from fathom.model.context import extended, set_config
from fathom.model.rope import inverse_frequencies
from fathom.model.transformer import DeepseekV3
from fathom.parallel.mesh import Layout
from fathom.runtime import UserError
from fathom.text.batch import digest
from fathom.text.dataset import open_streams
from fathom.text.long_rows import LongRows
from fathom.text.mixture import Mixture
from fathom.text.packed import PackedDataset
from fathom.text.synthetic.long_documents import long_document
from fathom.text.tokenizer import Tokenizer
from fathom.train.config import TrainConfig
from fathom.train.evaluate import bits_per_byte, nats_of
from fathom.train.extend import AS_TRAINED, YARN_ALONE, extend
from fathom.train.lengths import by_length, halvings
from fathom.train.loop import Trainer
from fathom.train.pretrain import token_stream

VOCAB = 320
PHASES = [[128, 2, 3], [256, 1, 3]]  # from a context of 64


# ---- YaRN ---------------------------------------------------------------------------------------------------------


def test_v3_is_its_pretraining_config_extended_by_40() -> None:
    released = ModelConfig.preset("v3-671b")
    config = extended(released.replace(rope_scaling=None, max_position_embeddings=4096), 40)
    assert config == released and config.max_position_embeddings == 163840
    inv = inverse_frequencies(config)  # facts 1.1.1
    for pair, value in ((0, 1.0), (10, 0.0562341325), (11, 0.0390069266), (16, 0.0055), (22, 1.77827941e-4),
                        (23, 3.33380358e-5), (31, 3.33380358e-6)):  # fmt: skip
        assert float(inv[pair]) == pytest.approx(value, rel=1e-6)
    assert config.softmax_scale == pytest.approx(0.13523378, rel=1e-7)


def test_minnow_follows_the_formulas() -> None:
    base = ModelConfig.preset("minnow")
    config = extended(base, 8)
    s = config.rope_scaling
    assert s is not None and config.max_position_embeddings == 8192 and s.original_max_position_embeddings == 1024
    assert (s.beta_fast, s.beta_slow, s.rope_amplitude) == (32, 1, 1.0)
    assert config.softmax_scale == pytest.approx(64**-0.5 * (0.1 * math.log(8) + 1) ** 2)
    low, high = (32 * math.log(1024 / (turns * 2 * math.pi)) / (2 * math.log(1e4)) for turns in (32, 1))
    for pair in range(16):
        plain = 1e4 ** (-2 * pair / 32)
        ramp = min(max((pair - math.floor(low)) / (math.ceil(high) - math.floor(low)), 0), 1)
        assert float(inverse_frequencies(config)[pair]) == pytest.approx(
            plain * (1 - ramp) + plain / 8 * ramp, rel=1e-6
        )


def test_a_model_is_extended_once_and_by_more_than_1() -> None:
    config = extended(ModelConfig.preset("minnow"), 8)
    with pytest.raises(UserError, match="YaRN with factor 8 already"):
        extended(config, 2)
    with pytest.raises(UserError, match="must be above 1"):
        extended(ModelConfig.preset("minnow"), 1)


def tiny(**changes: Any) -> DeepseekV3:
    config = ModelConfig(**MODEL).replace(vocab_size=VOCAB, **changes)
    return DeepseekV3(config, dtype=torch.float32).init_weights(torch.Generator().manual_seed(0)).eval()


@torch.no_grad()
def test_set_config_reaches_every_module() -> None:
    model, tokens = tiny(), torch.arange(60)[None]
    config = extended(model.config, 4)
    wanted = DeepseekV3(config, dtype=torch.float32)
    wanted.load_state_dict(model.state_dict())
    before = model(tokens)
    set_config(model, config)
    assert torch.equal(model(tokens), wanted(tokens)) and not torch.allclose(model(tokens), before)
    assert torch.equal(model.mtp_logits(tokens), wanted.mtp_logits(tokens))


# ---- data ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(tokenizer_folder)


def long_rows(tokenizer: Tokenizer, length: int = 256, seed: int = 1) -> LongRows:
    return LongRows(tokenizer.encode_plain, bos=0, eos=1, length=length, seed=seed)


def test_rows_of_long_documents(tokenizer: Tokenizer) -> None:
    rows = [long_rows(tokenizer, 2000).row(n) for n in range(4)]
    assert all(len(row) == 2001 and row[0] == 0 for row in rows)
    assert len({row.tobytes() for row in rows}) == 4
    assert np.array_equal(long_rows(tokenizer, 2000).row(3), rows[3])
    assert not np.array_equal(long_rows(tokenizer, 2000, seed=2).row(3), rows[3])
    first_end = [int(np.flatnonzero(row == 1)[0]) for row in rows]
    assert all(1000 < end < 2000 for end in first_end)  # one document takes most of a row


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_mixture_keeps_its_share_and_every_packed_row(tokenizer: Tokenizer, share: float) -> None:
    stream = np.arange(4000) % 256 + 20
    packed = PackedDataset({"a": stream}, rows=1, length=64, seed=3)
    long = LongRows(tokenizer.encode_plain, bos=0, eos=1, length=64, seed=1)
    mixture = Mixture(packed, long, rows=3, share=share)
    batches = [mixture.batch(step) for step in range(10)]
    rows = [b.tokens[i] for b in batches for i in range(3)]
    made_up = [row for row in rows if row[0] == 0]
    assert len(made_up) == math.floor(30 * share)
    for n, row in enumerate(made_up):
        assert np.array_equal(row.numpy(), long.row(n)[:-1])
    for n, row in enumerate([row for row in rows if row[0] != 0]):
        assert torch.equal(row, packed.batch(n).tokens[0])
    assert all(torch.equal(b.labels[:, :-1], b.tokens[:, 1:]) for b in batches)
    assert digest(mixture.batch(7)) == digest(batches[7])  # whatever was asked before


# ---- evaluation ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import random

    folder = tmp_path_factory.mktemp("corpus")
    for name, count in (("train", 12), ("heldout", 5)):
        lines = [{"source": "ab"[i % 2], "text": long_document(random.Random(f"{name}{i}"), 300)} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def recipe(tmp_path: Path, corpus: Path, tokenizer_folder: Path, changes: dict[str, Any] | None = None) -> TrainConfig:
    tmp_path.mkdir(exist_ok=True)
    start = tmp_path / "start"
    if not start.exists():
        save_model(tiny(), start, dtype="fp32", side_files_from=tokenizer_folder)
    base = make_config(tmp_path / "run", {
        "data.train": str(corpus / "train.jsonl"), "data.heldout": str(corpus / "heldout.jsonl"),
        "data.tokenizer": str(tokenizer_folder), "data.micro_rows": 1, "run.init_from": str(start), "run.eval_rows": 1,
        "run.checkpoint_every": 1, "optim.decay_fraction": 0.0, "optim.warmup_steps": 0,
    }).to_dict()  # fmt: skip
    base["model"] = {}
    base["data"] |= {"batch_rows": 16, "sequence_length": 512}  # the defaults: phases say these
    base["run"] |= {"steps": 1000, "eval_every": 200}
    base["extend"] = {"factor": 4.0, "phases": PHASES, "long_share": 0.5}
    for key, value in (changes or {}).items():
        table, _, name = key.partition(".")
        base[table][name] = value
    return TrainConfig.from_dict(base)


def test_halvings() -> None:
    assert halvings(1024, 8192) == [1024, 2048, 4096, 8192]
    assert halvings(1000, 3000) == [1500, 3000] and halvings(64, 65) == [65]


@torch.no_grad()
def test_bits_per_byte_is_plain_counting(corpus: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    config, model = recipe(tmp_path, corpus, tokenizer_folder), tiny()
    folder = token_stream(config.data.tokenizer, model.config, str(corpus / "heldout.jsonl"), tmp_path / "tokens")
    meta = json.loads((folder / "meta.json").read_text())["sources"]
    bits, size = {}, {}
    for name, stream in open_streams(folder).items():
        rows = [torch.from_numpy(np.asarray(stream[64 * r : 64 * r + 65]).astype(np.int64)) for r in range(3)]
        logp = [model(row[None, :-1])[0].double().log_softmax(-1).gather(1, row[1:, None]).sum() for row in rows]
        bits[name], size[name] = -float(sum(logp)) / math.log(2), 192 * meta[name]["bytes"] / meta[name]["tokens"]
    assert len(bits) == 2
    wanted = {name: bits[name] / size[name] for name in bits} | {"mean": sum(bits.values()) / sum(size.values())}
    assert bits_per_byte(nats_of(model), folder, rows=3, length=64) == pytest.approx(wanted, rel=1e-5)


@torch.no_grad()
def test_by_length_is_plain_counting(corpus: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    config, model = recipe(tmp_path, corpus, tokenizer_folder), tiny()
    folder = token_stream(config.data.tokenizer, model.config, str(corpus / "heldout.jsonl"), tmp_path / "tokens")
    meta = json.loads((folder / "meta.json").read_text())["sources"]
    wanted = dict.fromkeys(("64", "100", "256"), 0.0)
    covered = 0.0
    for name, stream in open_streams(folder).items():
        for row in range(2):
            ids = torch.from_numpy(np.asarray(stream[row * 256 : row * 256 + 257]).astype(np.int64))
            covered += 256 * meta[name]["bytes"] / meta[name]["tokens"]
            for length in wanted:
                for start in range(0, 256, int(length)):
                    piece = ids[start : min(start + int(length), 256) + 1]
                    logp = model(piece[None, :-1])[0].double().log_softmax(-1)
                    wanted[length] -= float(logp.gather(1, piece[1:, None]).sum()) / math.log(2)
    got = by_length(nats_of(model), folder, rows=2, lengths=[64, 100, 256])
    assert got == pytest.approx({k: v / covered for k, v in wanted.items()}, rel=1e-5)
    with pytest.raises(UserError, match="more than 100000 tokens"):
        by_length(nats_of(model), folder, rows=2, lengths=[100000])


# ---- whole extensions ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, corpus: Path, tokenizer_folder: Path) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    assert extend(recipe(folder, corpus, tokenizer_folder)) == folder / "run" / "phase-2" / "export"
    return folder


def test_a_pipeline_measures_and_trains_like_one_process(tmp_path: Path, corpus: Path, tokenizer_folder: Path) -> None:
    """The curves before training too, which need the other context on every stage."""
    changes = {"extend.phases": [[128, 4, 1], [256, 4, 1]], "parallel.pipeline": 2}
    alone = recipe(tmp_path / "alone", corpus, tokenizer_folder, changes | {"parallel.pipeline": 1})
    extend(alone)
    config = recipe(tmp_path / "ranks", corpus, tokenizer_folder, changes)
    ended = run(2, extend_on_ranks, config, Layout(pipeline=2), folder=tmp_path, limit=300.0)
    assert all(rank.code == 0 for rank in ended.values()), ended
    one, two = (json.loads((tmp_path / f"{name}/run/lengths.json").read_text()) for name in ("alone", "ranks"))
    assert list(one) == list(two) == [AS_TRAINED, YARN_ALONE, "phase 1", "phase 2"]
    for name, curve in one.items():
        assert two[name] == pytest.approx(curve, abs=2e-4), name


def test_what_an_extension_leaves(whole: Path) -> None:
    out = whole / "run"
    for number, (length, rows, steps) in enumerate(PHASES, 1):
        config = ModelConfig.from_pretrained(out / f"phase-{number}" / "export")
        assert config.max_position_embeddings == 256 and config.rope_scaling is not None
        assert (config.rope_scaling.factor, config.rope_scaling.original_max_position_embeddings) == (4, 64)
        records = [json.loads(line) for line in (out / f"phase-{number}" / "log.jsonl").read_text().splitlines()]
        assert [r["step"] for r in records] == [1, 2, 3] and records[-1]["tokens"] == length * rows * steps
        assert records[-1]["heldout"].keys() == {"64", "128", "256", "mean"}
        assert records[-1]["heldout"]["mean"] == records[-1]["heldout"][str(length)]
        assert len({r["lr"] for r in records}) == 1  # constant
    curves = json.loads((out / "lengths.json").read_text())
    assert list(curves) == [AS_TRAINED, YARN_ALONE, "phase 1", "phase 2"]
    assert all(values.keys() == {"64", "128", "256"} for values in curves.values())
    assert curves[AS_TRAINED] != curves[YARN_ALONE] != curves["phase 1"] != curves["phase 2"]
    assert (out / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_the_second_phase_starts_from_the_first(whole: Path) -> None:
    saved = json.loads((whole / "run" / "phase-2" / "config.json").read_text())
    assert saved["run"]["init_from"] == str(whole / "run" / "phase-1" / "export")
    first, second, start = (load_file(whole / f"{p}/model.safetensors") for p in
                            ("run/phase-1/export", "run/phase-2/export", "start"))  # fmt: skip
    name = "model.layers.0.self_attn.o_proj.weight"
    one, two = (first[name] - start[name]).norm(), (second[name] - first[name]).norm()
    assert 0 < one < start[name].norm() and 0 < two < start[name].norm()


def test_the_export_loads_and_reads_its_whole_context(whole: Path) -> None:
    model = load_model(whole / "run" / "phase-2" / "export", dtype="float32")
    assert model(torch.arange(256)[None] % VOCAB).isfinite().all()


@pytest.mark.parametrize("stop", [(1, 2), (2, 0)])
def test_a_stopped_extension_goes_on(
    whole: Path, corpus: Path, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    stop: tuple[int, int],
) -> None:  # fmt: skip
    """Stopped in a phase, or between two: the result is the same, bit for bit."""
    config = recipe(tmp_path / "again", corpus, tokenizer_folder)
    step = Trainer.step

    def stopped(self: Trainer) -> dict[str, Any]:
        if (self.out.name, self.step_done) == (f"phase-{stop[0]}", stop[1]):
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Trainer, "step", stopped)
    with pytest.raises(KeyboardInterrupt):
        extend(config)
    monkeypatch.undo()
    done = tmp_path / "again" / "run" / "phase-1" / "export" / "model.safetensors"
    made = done.stat().st_mtime_ns if stop[0] == 2 else None
    extend(config)
    assert made is None or done.stat().st_mtime_ns == made  # a finished phase is left alone
    for phase in ("phase-1", "phase-2"):
        mine, theirs = (
            load_file(f / "run" / phase / "export" / "model.safetensors") for f in (tmp_path / "again", whole)
        )
        assert not [name for name in theirs if not torch.equal(mine[name], theirs[name])]
    assert (tmp_path / "again/run/lengths.json").read_text() == (whole / "run/lengths.json").read_text()


def test_another_recipe_is_refused(whole: Path, corpus: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    for key, value in (("extend.long_share", 0.25), ("optim.peak_lr", 1e-3)):
        config = recipe(tmp_path, corpus, tokenizer_folder, {key: value})
        with pytest.raises(UserError, match=f"another extension .*{key}"):
            extend(config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"extend.phases": []}, "extend.phases is empty"), ({"extend.factor": 0.5}, "factor is 0.5, it must be above 1"),
     ({"extend.phases": [[128, 2]]}, r"\[row length, rows per step, steps\]"),
     ({"extend.phases": [[256, 1, 1], [128, 1, 1]]}, "longer rows than before"),
     ({"extend.phases": [[512, 1, 1]]}, "is 256; raise the factor"), ({"data.micro_rows": 4}, "not a multiple"),
     ({"run.init_from": ""}, "run.init_from is empty"), ({"run.steps": 5}, "run.steps has no effect"),
     ({"data.sequence_length": 64}, "data.sequence_length has no effect"),
     ({"data.text": "x.jsonl", "data.text_share": 0.5}, "data.text has no effect"),
     ({"model.hidden_size": 64}, "has no effect in an extension")],
)  # fmt: skip
def test_what_a_recipe_must_say(
    corpus: Path, tokenizer_folder: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        extend(recipe(tmp_path, corpus, tokenizer_folder, changes))


def test_minnows_recipe() -> None:
    from fathom.train.extend import check

    config = TrainConfig.from_toml(Path(__file__).parents[2] / "recipes" / "minnow-extend.toml")
    check(config)
    lengths, rows, _ = zip(*config.extend.phases, strict=True)
    assert lengths == (4096, 8192) and lengths[0] * rows[0] == lengths[1] * rows[1]  # tokens of a step, as the report
    last = extended(dataclasses.replace(ModelConfig.preset("minnow")), config.extend.factor)
    assert last.max_position_embeddings == lengths[-1]


def test_dry_run_of_an_extension_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(Path(__file__).parents[2] / "recipes" / "minnow-extend.toml")
    assert train_command(["extend", recipe, "--dry-run", "--json"]) == 0
    phases = json.loads(capsys.readouterr().out)["phases"]
    assert [p["data"]["sequence_length"] for p in phases] == [4096, 8192]
    assert all(p["plan"]["tokens"] == 60 * 4096 * 4 for p in phases)
    assert all(p["model"]["max_position_embeddings"] == 8192 for p in phases)
