"""`fathom generate`: order, resumption to the same bytes, and every bad input refused before any work."""

from __future__ import annotations

import errno
import fcntl
import json
import subprocess
import sys
import time

import pytest

import fathom.commands.generate as command
from fathom.cli import main
from fathom.engine.llm import LLM
from fathom.engine.params import SamplingParams
from fathom.engine.sampling import derive_seed

PROMPTS = [f"the little fish number {i} swims" for i in range(6)]


@pytest.fixture
def work(tmp_path, tiny_folder):
    source = tmp_path / "in.txt"
    source.write_text("\n".join(PROMPTS) + "\n")

    def run(*more, input_file=source, output="out.jsonl"):
        flags = ["--input-file", str(input_file), "--output-file", str(tmp_path / output), "--max-tokens", "8"]
        return main(["generate", str(tiny_folder), *flags, *more])

    run.source, run.out, run.folder = source, tmp_path / "out.jsonl", tiny_folder
    return run


def refused(capsys, *words):
    error = capsys.readouterr().err
    assert error.startswith("fathom: error: ") and error.count("\n") == 1, error
    for word in words:
        assert str(word) in error


def test_answers_are_those_of_the_library_in_order(work):
    assert work("--seed", "3", "--temperature", "0.9") == 0
    records = [json.loads(line) for line in work.out.read_text().splitlines()]
    assert [r["index"] for r in records] == list(range(6))
    llm = LLM(work.folder)
    for i, record in enumerate(records):
        params = SamplingParams(temperature=0.9, max_tokens=8, seed=derive_seed(3, i))
        [out] = llm.generate(PROMPTS[i], params)
        [sample] = record["outputs"]
        assert sample == {
            "text": out.outputs[0].text, "finish_reason": out.outputs[0].finish_reason,
            "token_ids": out.outputs[0].token_ids,
        }  # fmt: skip
        assert record["prompt_tokens"] == len(out.prompt_token_ids)
        assert record["generated_tokens"] == len(sample["token_ids"])


@pytest.mark.parametrize("cut", [0, 1, 60, 0.5, -1])
def test_a_cut_output_is_made_whole_again(work, cut):
    assert work() == 0
    whole = work.out.read_bytes()
    end = int(len(whole) * cut) if isinstance(cut, float) else cut % len(whole)
    work.out.write_bytes(whole[:end])
    assert work() == 0
    assert work.out.read_bytes() == whole


def test_finished_answers_are_not_made_again(work, monkeypatch):
    assert work() == 0
    whole = work.out.read_bytes()
    monkeypatch.setattr(LLM, "generate", lambda *_: pytest.fail("made again"))
    assert work() == 0
    assert work.out.read_bytes() == whole


def test_a_longer_input_goes_on(work, tmp_path):
    assert work() == 0
    first = work.out.read_bytes()
    work.source.write_text("\n".join([*PROMPTS, "and one more"]) + "\n")
    assert work() == 0
    assert work.out.read_bytes().startswith(first) and len(work.out.read_bytes().splitlines()) == 7


def test_killed_and_resumed_equals_uninterrupted(work, tmp_path):
    """A real process, killed with SIGKILL in the middle."""
    assert work(output="whole.jsonl") == 0
    whole = (tmp_path / "whole.jsonl").read_bytes()
    slow = (
        "import sys, time, fathom.commands.generate as g\n"
        "real = g.record\n"
        "def record(index, *a):\n    time.sleep(60 if index == 4 else 0)\n    return real(index, *a)\n"
        "g.record = record\n"
        "from fathom.cli import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    flags = ["--input-file", str(work.source), "--output-file", str(work.out), "--max-tokens", "8"]
    process = subprocess.Popen([sys.executable, "-c", slow, "generate", str(work.folder), *flags])
    deadline = time.time() + 60
    while time.time() < deadline and (not work.out.exists() or work.out.read_bytes().count(b"\n") < 2):
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert 2 <= work.out.read_bytes().count(b"\n") < 6
    assert work() == 0
    assert work.out.read_bytes() == whole


def test_other_input_settings_or_file_need_overwrite(work, capsys):
    assert work() == 0
    before = work.out.read_bytes()
    for more in (["--temperature", "0.5"], ["--seed", "1"], ["--top-k", "3"], ["--chat"]):
        assert work(*more) == 2
        refused(capsys, work.out, "line 1", "--overwrite")
    work.source.write_text("\n".join(PROMPTS[:2]) + "\n")
    assert work() == 2
    refused(capsys, "holds 6 answers, the input 2")
    work.source.write_text("\n".join(["other", *PROMPTS[1:]]) + "\n")
    assert work() == 2
    refused(capsys, "line 1 answers another prompt")
    assert work.out.read_bytes() == before
    assert work("--overwrite") == 0
    assert work.out.read_bytes() != before and len(work.out.read_bytes().splitlines()) == 6


@pytest.mark.parametrize("content", ["my precious notes", "line\n", '{"index": 5}\n', '{"a": 1}'])
def test_a_file_of_another_kind_is_never_touched(work, capsys, content):
    work.out.write_text(content)
    assert work() == 2
    refused(capsys, "not written by fathom generate")
    assert work.out.read_text() == content


def test_output_over_input_is_refused(work, capsys):
    assert work("--overwrite", output="in.txt") == 2
    refused(capsys, "is the input file too")
    assert work.source.read_text().startswith("the little")


def test_jsonl_with_fields_of_its_own(work, tmp_path):
    lines = [
        {"prompt": "the sea", "temperature": 0, "max_tokens": 3},
        {"messages": [{"role": "user", "content": "sing"}], "n": 2, "logprobs": 1, "seed": 4},
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(json.dumps(line) for line in lines))
    assert work(input_file=source) == 0
    first, second = (json.loads(line) for line in work.out.read_text().splitlines())
    llm = LLM(work.folder)
    [plain] = llm.generate("the sea", SamplingParams(temperature=0, max_tokens=3))
    assert first["outputs"][0]["token_ids"] == plain.outputs[0].token_ids
    [chat] = llm.chat(lines[1]["messages"], SamplingParams(n=2, logprobs=1, seed=4, max_tokens=8))
    assert [o["text"] for o in second["outputs"]] == [o.text for o in chat.outputs]
    assert second["outputs"][1]["logprobs"][0]["logprob"] == chat.outputs[1].logprobs[0].logprob


def test_chat_flag_wraps_prompts(work):
    assert work("--chat", "--temperature", "0") == 0
    record = json.loads(work.out.read_text().splitlines()[2])
    talk = [{"role": "user", "content": PROMPTS[2]}]
    [out] = LLM(work.folder).chat(talk, SamplingParams(temperature=0, max_tokens=8))
    assert record["outputs"][0]["token_ids"] == out.outputs[0].token_ids


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{oops", "not valid JSON"),
        ("[1]", 'either "prompt" or "messages"'),
        ("{}", 'either "prompt" or "messages"'),
        ('{"prompt": "a", "messages": []}', 'either "prompt" or "messages"'),
        ("[" * 100_000, "not valid JSON"),
        ('{"prompt": 5}', "prompt must be a text"),
        ('{"prompt": "\\ud800"}', "surrogate"),
        ('{"prompt": "a", "tempature": 1}', "unknown sampling field 'tempature'"),
        ('{"prompt": "a", "top_p": 2}', "top_p is 2"),
        ('{"messages": [{"content": "x"}]}', "messages must be"),
        ('{"messages": [{"role": "king", "content": "x"}]}', "king"),
        ('{"prompt": "%s"}' % ("long " * 200), "the context holds 128"),
        ('{"prompt": "a", "logit_bias": {"999": 1}}', "token id 999"),
    ],
)
def test_a_bad_line_stops_everything_before_it_starts(work, tmp_path, capsys, line, words):
    source = tmp_path / "bad.jsonl"
    source.write_text('{"prompt": "fine"}\n' + line + "\n")
    assert work(input_file=source) == 2
    refused(capsys, "line 2", words)
    assert not work.out.exists()


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "is empty"), (b"a\n\nb\n", "line 2: the line is empty"), (b"\xff\xfe", "not UTF-8")]
)
def test_bad_text_files(work, capsys, content, words):
    work.source.write_bytes(content)
    assert work() == 2
    refused(capsys, words)
    assert not work.out.exists()


def test_missing_input_and_model(work, tmp_path, capsys):
    assert work(input_file=tmp_path / "none.txt") == 2
    refused(capsys, "none.txt")
    assert main(["generate", "no-such-model", "--input-file", str(work.source), "--output-file", str(work.out)]) == 2
    refused(capsys, "no-such-model")
    assert not work.out.exists()


def test_flags_are_frozen():
    """The command line is a contract: a change here needs a line in the CHANGELOG."""
    names = list(command.Args.__dataclass_fields__)
    assert names == [
        "model", "input_file", "output_file", "chat", "overwrite", "temperature", "top_p", "top_k", "min_p",
        "max_tokens", "stop", "n", "logprobs", "repetition_penalty", "presence_penalty", "frequency_penalty",
        "ignore_eos", "seed", "dtype", "device",
    ]  # fmt: skip


def test_answered_conversations_can_be_trained_on(tiny_folder, tmp_path):
    """The line of a conversation is a dialogue; of a text, or of several answers, it is none."""
    talk = [{"role": "user", "content": "sing"}]
    lines = [{"messages": talk}, {"prompt": "a fish"}, {"messages": talk, "n": 2}]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert (
        main(
            ["generate", str(tiny_folder), "--input-file", str(source), "--output-file", str(out), "--max-tokens", "4"]
        )
        == 0
    )
    first, *others = (json.loads(line) for line in out.read_text().splitlines())
    assert first["messages"] == [*talk, {"role": "assistant", "content": first["outputs"][0]["text"]}]
    assert not any("messages" in line for line in others)


def test_names_of_lines_come_back_and_batch_lines_are_read(work, tmp_path, capsys):
    """{"custom_id", "method", "url", "body"} as for OpenAI's Batch API: the same answer as the plain line."""
    chat = [{"role": "user", "content": "sing"}]
    body = {"model": "gpt", "messages": chat, "temperature": 0, "max_completion_tokens": 5}
    lines = [
        {"id": "first", "messages": chat, "temperature": 0, "max_tokens": 5},
        {"custom_id": "second", "method": "POST", "url": "/v1/chat/completions", "body": body},
        {"id": 3, "prompt": "sing"},
        {"prompt": "sing"},
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)))
    assert work(input_file=source) == 0
    first, second, third, fourth = (json.loads(line) for line in work.out.read_text().splitlines())
    assert first["id"] == "first" and second["custom_id"] == "second" and third["id"] == 3 and "id" not in fourth
    assert first["outputs"] == second["outputs"] and first["request"] != third["request"]
    for odd, word in (
        ({"custom_id": "a", "url": "/v1/embeddings", "body": body}, "not POST /v1/embeddings"),
        ({"custom_id": "a", "body": body, "priority": 1}, "not the field 'priority'"),
        ({"body": {**body, "stream": True}}, "stream has no effect"),
        ({"id": ["a"], "prompt": "x"}, "id must be a number or a text"),
    ):
        source.write_text(json.dumps(odd))
        assert work(input_file=source, output="other.jsonl") == 2
        refused(capsys, "line 1", word)


def test_one_writer_and_a_full_disk(work, capsys, monkeypatch):
    work.out.write_bytes(b"")
    with open(work.out, "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert work() == 2
        refused(capsys, "another run is writing to", work.out)

    calls = []

    def fsync(_):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(command.os, "fsync", fsync)
        assert work() == 2
    refused(capsys, work.out, "No space left on device", "make room")
    assert work() == 0 and [json.loads(line)["index"] for line in work.out.read_text().splitlines()] == list(range(6))
