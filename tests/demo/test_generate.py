"""python -m fathom.demo.generate: one process, several, torchrun itself, and everything that can be missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_models import EVEN_V3, make_model
from parallel.bodies import demo, demo_killed
from parallel.distributed import run
from tiny import tiny_model, tiny_tokenizer

from fathom.checkpoint.convert import convert
from fathom.checkpoint.plan import Options
from fathom.checkpoint.reader import load_model
from fathom.checkpoint.writer import save_model
from fathom.demo import generate, rank_file
from fathom.engine.naive import generate_tokens
from fathom.engine.params import SamplingParams
from fathom.parallel.group import Group
from fathom.parallel.launch import Place, Ranks, join
from fathom.parallel.tensor import shard
from fathom.runtime import UserError
from fathom.text.chat import ChatTemplate
from fathom.text.tokenizer import Tokenizer

PROMPTS = ["the little fish", "in the tall tree", "  all day "]
TOKENS = 6


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hf, mp1, mp2 and mp4 of one FP32 model, and a file of prompts."""
    root = tmp_path_factory.mktemp("demo")
    model = tiny_model(num_attention_heads=4, eos_token_id=())
    save_model(model, root / "hf", dtype="fp32")
    tiny_tokenizer(root / "hf")
    for ranks in (1, 2, 4):
        convert(root / "hf", root / f"mp{ranks}", Options("demo", model_parallel=ranks))
    (root / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return root


def flags(made: Path, ranks: int, *more: str, folder: Path | None = None) -> list[str]:
    """Greedy, FP32, the prompts file."""
    where = folder or made / f"mp{ranks}"
    given = ["--ckpt-path", str(where), "--config", str(made / "mp2" / "demo_config.json")]
    given += ["--max-new-tokens", str(TOKENS), *more]
    given += [] if "--temperature" in more else ["--temperature", "0"]
    return given if "--interactive" in more else [*given, "--input-file", str(made / "prompts.txt")]


@pytest.fixture(scope="session")
def whole_answers(made: Path) -> list[str]:
    """What the whole model says to each prompt, from the folder in Hugging Face layout."""
    model, tokenizer = load_model(made / "hf"), Tokenizer.from_pretrained(made / "hf")
    template = ChatTemplate.from_pretrained(made / "hf")
    answers = []
    for prompt in PROMPTS:
        ids = template.encode(tokenizer, [{"role": "user", "content": prompt.strip()}])
        steps = list(generate_tokens(model, ids, SamplingParams(0.0, max_tokens=TOKENS), eos_ids=tokenizer.eos_ids))
        tokens = [s.token_id for s in steps if s.finish_reason != "stop"]
        answers.append(tokenizer.decode(tokens))
    assert len(set(answers)) == len(PROMPTS) and all(answers)
    return answers


def pairs(answers: list[str]) -> str:
    return "".join(f"Prompt: {p.strip()}\nCompletion: {a}\n\n" for p, a in zip(PROMPTS, answers, strict=True))


def test_one_process(made: Path, whole_answers: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(flags(made, 1)) == 0
    assert capsys.readouterr().out == pairs(whole_answers)


def test_torchrun(made: Path, whole_answers: list[str]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "fathom.demo.generate"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*command, *flags(made, 2)], capture_output=True, env=env, timeout=180)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.decode() == pairs(whole_answers)


def test_four_processes_greedy(made: Path, whole_answers: list[str], tmp_path: Path) -> None:
    ended = run(4, demo, flags(made, 4), folder=tmp_path)
    assert [rank.code for rank in ended.values()] == [0] * 4, ended
    assert [rank.out for rank in ended.values()] == [pairs(whole_answers), "", "", ""]


def test_sampling_is_that_of_one_process(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = {}
    for seed in ("5", "6"):
        assert generate.main(flags(made, 1, "--temperature", "1.2", "--seed", seed)) == 0
        said[seed] = capsys.readouterr().out
    assert said["5"] != said["6"]
    ended = run(2, demo, flags(made, 2, "--temperature", "1.2", "--seed", "5"), folder=tmp_path)
    assert [rank.code for rank in ended.values()] == [0, 0], ended
    assert ended[0].out == said["5"]


def test_interactive_conversation_over_two_processes(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["the little fish", "and then", "/clear", "the little fish", "long " * 200, "and then", "/exit", "never"]
    ended = run(2, demo, flags(made, 2, "--interactive"), folder=tmp_path, stdin="\n".join(lines) + "\n")
    assert [rank.code for rank in ended.values()] == [0, 0], ended
    typed = iter(lines)
    monkeypatch.setattr("builtins.input", lambda prompt: print(prompt, end="") or next(typed))
    assert generate.main(flags(made, 1, "--interactive")) == 0
    alone = capsys.readouterr()
    assert ended[0].out == alone.out and ended[1].out == ""
    answers = ended[0].out.split(">>> ")
    assert len(answers) == len(lines) and answers[1] == answers[4], "/clear forgets"
    assert answers[2] == answers[6], "a message that does not fit leaves no trace"
    assert answers[1] != answers[2]
    for err in (ended[0].err, alone.err):
        assert "the context holds" in err and "/clear forgets the conversation" in err
    assert next(typed) == "never"


def test_end_of_input_leaves(made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    assert generate.main(flags(made, 1, "--interactive")) == 0
    assert capsys.readouterr().out == ">>> \n"


# ---- what can be missing ---------------------------------------------------------------------------------------------


def test_missing_file_is_named_once_and_ends_all(made: Path, tmp_path: Path) -> None:
    hole = tmp_path / "hole"
    hole.mkdir()
    for path in (made / "mp2").iterdir():
        if path.name != "model1-mp2.safetensors":
            (hole / path.name).write_bytes(path.read_bytes())
    ended = run(2, demo, flags(made, 2, folder=hole), folder=tmp_path)
    assert [rank.code for rank in ended.values()] == [2, 2]
    lines = [line for line in ended[0].err.splitlines() if line.startswith("fathom: error")]
    assert len(lines) == 1 and ended[1].err == ""
    assert "rank 1: " in lines[0] and "model1-mp2.safetensors is missing" in lines[0]


def test_missing_rank_is_named_in_time(made: Path, tmp_path: Path) -> None:
    ended = run(2, demo, flags(made, 2, "--timeout-seconds", "2"), folder=tmp_path, only=[0], limit=60)
    assert ended[0].code == 1
    assert ended[0].err.count("fathom: error") == 1
    assert "rank 1 of 2 did not come to the start within 2 s" in ended[0].err


def test_killed_rank_is_named_in_time(made: Path, tmp_path: Path) -> None:
    ended = run(2, demo_killed, flags(made, 2), folder=tmp_path, limit=60)
    assert ended[1].code == -9 and ended[0].code == 1
    assert ended[0].err.count("fathom: error") == 1 and "rank 1 (process " in ended[0].err


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (1, "mp2 is made for 2 processes in all, not for 1"),
        (2, "model3-mp2.safetensors is missing, the file of rank 3"),
    ],
)
def test_files_that_do_not_fit_the_processes(made: Path, ranks: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rank_file.find(made / "mp2", 0 if ranks == 1 else 3, ranks)


def test_wrong_number_of_processes(made: Path, tmp_path: Path) -> None:
    ended = run(2, demo, flags(made, 2, folder=made / "mp4"), folder=tmp_path)
    assert [rank.code for rank in ended.values()] == [2, 2]
    assert ended[0].err.count("\n") == 1 and ended[1].err == ""
    assert "mp4 is made for 4 processes in all, not for 2" in ended[0].err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([], "neither of --input-file and --interactive"),
        (["--interactive", "--input-file", "x"], "both of --input-file and --interactive"),
        (["--interactive", "--temperature", "-1"], "temperature is -1"),
        (["--interactive", "--max-new-tokens", "0"], "max_tokens is 0"),
        (["--interactive", "--timeout-seconds", "0"], "--timeout-seconds is 0"),
        (["--interactive", "--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["--interactive", "--dtype", "int3"], "dtype 'int3' is not known"),
        (["--input-file", "no-such-file"], "cannot read no-such-file"),
        (["--interactive", "--config", "no-such-config"], "no-such-config does not exist"),
        (["--interactive", "--ckpt-path", "no-such-folder"], "no-such-folder is not a folder"),
    ],
)
def test_mistakes_are_one_line(
    made: Path, change: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ["--ckpt-path", str(made / "mp1"), "--config", str(made / "mp1" / "config.json")]
    assert generate.main([*base, *change]) == 2
    err = capsys.readouterr().err
    assert err.startswith("fathom: error: ") and err.count("\n") == 1 and message in err
    monkeypatch.setenv("RANK", "1")  # another rank would leave it to rank 0
    if "neither" in message:
        assert generate.main([*base, *change]) == 2 and capsys.readouterr().err == ""


def test_official_flags_and_defaults() -> None:
    args = generate.parser().parse_args(["--ckpt-path", "a", "--config", "b", "--interactive"])
    assert (args.max_new_tokens, args.temperature, args.input_file) == (200, 0.2, None)
    options = {o for action in generate.parser()._actions for o in action.option_strings}
    assert options == {
        "-h", "--help", "--ckpt-path", "--config", "--input-file", "--interactive", "--max-new-tokens",
        "--temperature", "--seed", "--dtype", "--device", "--timeout-seconds",
    }  # fmt: skip


# ---- one rank's file -------------------------------------------------------------------------------------------------


def ranks_of(rank: int, size: int) -> Ranks:
    """A rank that loads without ever talking to the others."""
    with join(Place()) as alone:
        group = Group(rank, size, None, alone.device)  # type: ignore[arg-type]
        return Ranks(rank, size, alone.device, alone.store, alone.watch, 1.0, group)


@pytest.mark.parametrize("dtype", ["fp8", "bf16"])
def test_each_rank_loads_its_slice_from_its_file_alone(dtype: str, tmp_path: Path) -> None:
    save_model(make_model(EVEN_V3), tmp_path / "hf", dtype=dtype)
    convert(tmp_path / "hf", tmp_path / "demo", Options("demo", model_parallel=2, mtp=True))
    for rank in range(2):
        path = tmp_path / "demo" / f"model{rank}-mp2.safetensors"
        alone = tmp_path / f"alone{rank}"
        alone.mkdir()
        path.rename(alone / path.name)
        ranks = ranks_of(rank, 2)
        assert ranks.group is not None
        loaded = rank_file.load(EVEN_V3, rank_file.find(alone, rank, 2), ranks)
        split = shard(load_model(tmp_path / "hf"), ranks.group)
        expected = {n: t for n, t in split.state_dict().items() if not n.startswith("mtp.")}
        found = loaded.state_dict()
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moe_intermediate_size": 32}, r"layers.1.ffn.experts.4.w1.weight has shape \[16, 32\], the config says"),
        ({"num_hidden_layers": 4}, r"layers.3.attn_norm.weight is missing"),
        ({"num_hidden_layers": 2}, r"layers.2.enorm.weight is missing|layers.2.attn_norm.weight is unexpected"),
        ({"n_shared_experts": 0}, r"layers.1.ffn.shared_experts.w1.weight is unexpected"),
    ],
)
def test_a_config_that_does_not_fit_the_file(made: Path, change: dict[str, int], message: str) -> None:
    config = load_model(made / "hf").config.replace(**change)
    with pytest.raises(UserError, match=message) as caught:
        rank_file.load(config, rank_file.find(made / "mp2", 1, 2), ranks_of(1, 2))
    assert "model1-mp2.safetensors does not hold what the config promises" in str(caught.value)


def test_a_model_that_cannot_be_split_so(made: Path) -> None:
    config = load_model(made / "hf").config
    with pytest.raises(UserError, match="over 3 processes: num_attention_heads is 4"):
        rank_file.load(config, made / "mp2" / "model0-mp2.safetensors", ranks_of(0, 3))
