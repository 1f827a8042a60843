"""`fathom chat`: session and slash commands without a terminal, one-shot answers, and a real pseudo-terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import sys
import time
from types import SimpleNamespace

import pytest

from fathom.cli import main
from fathom.commands.chat import _turn, printable
from fathom.commands.chat_input import line_editing, load_history, read_message
from fathom.commands.chat_session import SETTINGS, ChatSession
from fathom.engine.llm import LLM
from fathom.engine.outputs import Metrics
from fathom.engine.params import SamplingParams
from fathom.runtime import UserError

# ---- session ---------------------------------------------------------------------------------------------------------


def talked(turns: int = 2) -> ChatSession:
    session = ChatSession(SamplingParams(temperature=0.6), system="be kind", model="tiny")
    for i in range(turns):
        session.ask(f"question {i}")
        session.answered({"role": "assistant", "content": f"answer {i}"}, Metrics(5, 7, 0.5, 20.0))
    return session


def test_history_goes_to_the_model():
    session = talked(1)
    session.ask("next")
    assert [(m["role"], m["content"]) for m in session.messages()] == [
        ("system", "be kind"), ("user", "question 0"), ("assistant", "answer 0"), ("user", "next"),
    ]  # fmt: skip
    session.answered(None)
    assert len(session.turns) == 2


def test_reset_system_exit_and_stats():
    session = talked()
    assert "4 messages, 2 answers, 14 tokens" in session.command("/stats").text
    assert "20.0 tokens/s" in session.command("/stats").text
    session.command("/system talk like a fish")
    assert session.system == "talk like a fish" and session.turns == []
    session.command("/system")
    assert session.messages() == []
    session = talked()
    session.command("/reset")
    assert session.turns == [] and session.system == "be kind"
    assert session.command("/exit").exit and session.command("/quit").exit and not session.command("/help").exit


def test_help_names_every_command_and_setting():
    text = talked().command("/help").text
    for word in ("/reset", "/system", "/set", "/save", "/load", "/stats", "/exit", "Ctrl-C", *SETTINGS):
        assert word in text


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("/set temperature 0", "temperature", 0),
        ("/set top-p 0.5", "top_p", 0.5),
        ("/set top_k 40", "top_k", 40),
        ("/set max_tokens 9", "max_tokens", 9),
        ("/set max_tokens none", "max_tokens", None),
        ("/set seed 5", "seed", 5),
        ("/set stop \\n\\n", "stop", ("\n\n",)),
        ('/set stop ["a", "b c"]', "stop", ("a", "b c")),
        ("/set stop none", "stop", ()),
        ("/set frequency_penalty -1.5", "frequency_penalty", -1.5),
    ],
)
def test_set(line, field, value):
    session = talked()
    reply = session.command(line)
    assert getattr(session.params, field) == value and reply.text.startswith(field)
    assert reply.text in session.command("/set").text


def test_set_thinking():
    session = talked()
    session.command("/set thinking on")
    assert session.thinking
    with pytest.raises(UserError, match="on or off"):
        session.command("/set thinking maybe")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/resett", "did you mean /reset"),
        ("/xyzzy", "/help lists"),
        ("/set temprature 1", "unknown setting 'temprature'"),
        ("/set temperature", "needs a value; now it is 0.6"),
        ("/set temperature hot", "temperature is 'hot'"),
        ("/set temperature -1", "at least 0"),
        ("/set n 3", "unknown setting"),
        ("/save", "needs a file name"),
        ("/load", "needs a file name"),
        ("/load /nowhere/at/all", "/nowhere/at/all"),
    ],
)
def test_mistakes_change_nothing(line, words):
    session = talked()
    before = session.to_dict()
    with pytest.raises(UserError, match=words):
        session.command(line)
    assert session.to_dict() == before


def test_save_and_load(tmp_path):
    session = talked()
    session.command("/set top_p 0.5")
    session.command("/set thinking on")
    path = tmp_path / "talk.json"
    assert str(path) in session.command(f"/save {path}").text
    other = ChatSession(SamplingParams())
    other.command(f"/load {path}")
    assert (other.messages(), other.params, other.thinking) == (session.messages(), session.params, True)
    assert [p.name for p in tmp_path.iterdir()] == ["talk.json"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.update(format="x"),
        lambda d: d.pop("system"),
        lambda d: d.update(more=1),
        lambda d: d.update(thinking="yes"),
        lambda d: d.update(system=3),
        lambda d: d["params"].update(temperature=-1),
        lambda d: d["params"].update(nonsense=1),
        lambda d: d.update(params=None),
        lambda d: d.update(messages={}),
        lambda d: d["messages"].pop(),
        lambda d: d["messages"].reverse(),
        lambda d: d["messages"].__setitem__(0, "hello"),
        lambda d: d["messages"][0].update(content=None),
        lambda d: d["messages"][0].update(tool_calls=[1]),
    ],
)
def test_load_validates(tmp_path, damage):
    data = talked().to_dict()
    damage(data)
    path = tmp_path / "talk.json"
    path.write_text(json.dumps(data))
    session = talked(1)
    before = session.to_dict()
    with pytest.raises(UserError, match=r"talk\.json"):
        session.command(f"/load {path}")
    assert session.to_dict() == before


def test_oldest_turns_are_dropped_when_the_context_is_full():
    def count(messages):
        return 10 * len(messages)  # a system message of 10, and 20 a turn

    session = talked(6)
    session.ask("now")
    assert session.fit(count, 1000) == 0 and len(session.turns) == 13
    assert session.fit(count, 100) == 4  # 14 messages; a quarter free leaves 75, which hold 7; turns go whole
    assert session.messages()[0]["role"] == "system" and session.turns[0]["content"] == "question 4"
    session.params = session.params.replace(max_tokens=5)
    assert session.fit(count, 65) == 0  # an answer of 5 tokens fits beside 60
    assert session.fit(count, 64) == 1
    assert session.fit(count, 1) == 1 and [t["content"] for t in session.turns] == ["now"]


def test_a_question_that_is_refused_changes_nothing():
    """Longer than the context: what was forgotten to make room for it is there again."""
    session = talked(6)
    before = list(session.turns)

    def stream(*_, **__):
        raise UserError("the prompt has too many tokens")

    llm = SimpleNamespace(count_tokens=lambda messages, **_: 1000, max_model_len=100, stream=stream)
    with pytest.raises(UserError, match="too many tokens"):
        _turn(llm, session, "word " * 1000)
    assert session.turns == before
    with pytest.raises(UserError, match="home folder of nobody"):
        session.command("/save ~nobody-of-this-name/talk.json")


# ---- keyboard --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["plain"], "plain"),
        (["first\\", "second\\", "third"], "first\nsecond\nthird"),
        (['"""', "a", "", "b", '"""'], "a\n\nb"),
        (['"""a', 'b"""'], "a\nb"),
        (['"""a"""'], "a"),
        (["pasted\nin one\r\npiece\rhere"], "pasted\nin one\npiece\nhere"),
    ],
)
def test_messages_of_several_lines(lines, message):
    rest = iter(lines)
    assert read_message(lambda prompt: next(rest)) == message
    assert next(rest, None) is None


def test_waiting_lines_are_the_rest_of_a_paste():
    rest, waiting = iter(["a", "b", "c"]), iter([True, True, False])
    assert read_message(lambda prompt: next(rest), pending=lambda: next(waiting)) == "a\nb\nc"


def test_input_history_is_kept_by_message(tmp_path):
    path = tmp_path / "state" / "history.jsonl"
    with line_editing(path) as remember:
        for text in ("one", "two\nlines", "two\nlines", "  "):
            remember(text)
    assert load_history(path) == ["one", "two\nlines"]
    path.write_text('"one"\n{broken\n7\n"last"\n')
    assert load_history(path) == ["one", "last"]


def test_control_characters_do_not_reach_the_terminal():
    assert printable("a\x1b[2Jb\x07\tc\nd\x9b1m é") == "a[2Jb\tc\nd1m é"


# ---- one answer ------------------------------------------------------------------------------------------------------


@pytest.fixture
def chat(tiny_folder, monkeypatch, capsys):
    def run(*flags, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main(["chat", str(tiny_folder), "--max-tokens", "8", *flags])
        return code, *capsys.readouterr()

    return run


def answer_to(folder, *contents, system=None, **params):
    talk = [{"role": "system", "content": system}] if system else []
    talk += [{"role": "user", "content": c} for c in contents]
    return LLM(folder).chat(talk, SamplingParams(**({"temperature": 0, "max_tokens": 8} | params)))[0]


def test_prompt_flag(chat, tiny_folder):
    expected = answer_to(tiny_folder, "sing").outputs[0].text
    assert chat("-p", "sing", "--temperature", "0")[:2] == (0, expected + "\n")


def test_standard_input_follows_the_prompt(chat, tiny_folder):
    expected = answer_to(tiny_folder, "sing\n\nof the\nsea").outputs[0].text + "\n"
    assert chat("-p", "sing", "--temperature", "0", stdin=b"of the\nsea\n")[:2] == (0, expected)
    expected = answer_to(tiny_folder, "of the sea").outputs[0].text + "\n"
    assert chat("--temperature", "0", stdin=b"of the sea\n")[:2] == (0, expected)


def test_json(chat, tiny_folder):
    code, out, _ = chat("-p", "sing", "--json", "--seed", "3", "--system", "be brief", "--top-p", "0.9")
    result = json.loads(out)
    assert code == 0 and out.count("\n") == 1
    expected = LLM(tiny_folder, seed=3).chat(
        [{"role": "system", "content": "be brief"}, {"role": "user", "content": "sing"}],
        SamplingParams(top_p=0.9, max_tokens=8),
    )[0]
    assert result["text"] == expected.outputs[0].text
    assert result["finish_reason"] == expected.outputs[0].finish_reason and result["seed"] == 3
    assert result["prompt_tokens"] == len(expected.prompt_token_ids)
    assert result["generated_tokens"] == len(expected.outputs[0].token_ids)
    assert result["metrics"]["tokens_per_second"] > 0 and result["model"] == str(tiny_folder)


def test_dtype_and_device(chat):
    code, out, _ = chat("-p", "sing", "--dtype", "bfloat16", "--device", "cpu", "--json")
    assert code == 0 and json.loads(out)["generated_tokens"] > 0


def test_thinking_flag(chat):
    code, out, _ = chat("-p", "sing", "--thinking", "--json")
    assert code == 0 and "text" in json.loads(out)


@pytest.mark.parametrize(
    ("flags", "stdin", "words"),
    [
        (["-p", " "], b"", "the prompt is empty"),
        ([], b"", "the prompt is empty; give -p a text, or pipe one in"),
        (["--json"], b" \n", "the prompt is empty"),
        (["-p", "x", "--temperature", "-1"], b"", "temperature is -1"),
        (["-p", "x", "--max-tokens", "0"], b"", "max_tokens is 0"),
        (["-p", "x", "--seed", "-4"], b"", "seed is -4"),
        (["-p", "x", "--dtype", "float7"], b"", "float7"),
        (["-p", "word " * 500], b"", "the context holds 128"),
        ([], b"\xff\xff", "not UTF-8"),
        (["--temprature", "1"], b"", "--temperature"),
    ],
)
def test_mistakes_are_one_line(chat, flags, stdin, words):
    code, out, err = chat(*flags, stdin=stdin)
    lines = [line for line in err.splitlines() if not line.startswith("fathom: /")]  # the note on the template
    assert (code, out, len(lines)) == (2, "", 1)
    assert lines[0].startswith("fathom: error: ") and words in lines[0]


# ---- a terminal ------------------------------------------------------------------------------------------------------

SLOW_AND_ENDLESS = """
import sys, time
from fathom.engine.llm import LLM
real = LLM.stream
def slow(self, prompt, params, **more):
    for number, delta in enumerate(real(self, prompt, params.replace(ignore_eos=True), **more)):
        if number == 10:
            print("@@", flush=True)  # ten tokens are on the screen
        if number >= 10:
            time.sleep(0.05)
        yield delta
LLM.stream = slow
from fathom.cli import main
sys.exit(main(sys.argv[1:]))
"""


class Terminal:
    """A child process on a pseudo-terminal, as a person would sit before it."""

    def __init__(self, argv, env):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever runs the tests in the background ignores it
            os.execve(argv[0], argv, env)
        self.seen = ""

    def wait_for(self, text, seconds=60):
        """Everything shown up to and with `text`."""
        deadline = time.time() + seconds
        while text not in self.seen:
            assert time.time() < deadline, f"no {text!r} in {self.seen!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                self.seen += os.read(self.fd, 65536).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text):
        os.write(self.fd, text.encode())

    def interrupt(self):
        """Ctrl-C at the prompt. Python loses one that falls between showing the prompt and waiting for a key: it then
        acts with the next key. So there is a pause before it."""
        time.sleep(1)
        self.type("\x03")

    def exit_code(self, seconds=90):
        deadline = time.time() + seconds
        while time.time() < deadline:
            try:
                if select.select([self.fd], [], [], 0.1)[0]:
                    os.read(self.fd, 65536)
            except OSError:
                pass  # Linux says so when the other side has closed
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)
        raise AssertionError("the program did not end")


def test_a_conversation_at_a_terminal(tiny_folder, tmp_path):
    env = os.environ | {"XDG_STATE_HOME": str(tmp_path / "state"), "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-c", SLOW_AND_ENDLESS, "chat", str(tiny_folder), "--max-tokens", "100"]
    screen, saved = Terminal(argv, env), tmp_path / "talk.json"
    screen.wait_for(">>> ")

    screen.type("\x1b[200~first line\rsecond line\x1b[201~\r")  # a bracketed paste, then Enter
    screen.wait_for("@@")
    screen.type("\x03")  # Ctrl-C stops the answer ...
    screen.wait_for("(stopped)")
    screen.wait_for(">>> ")  # ... and not the program

    screen.type("/set max_tokens 5\r")
    screen.wait_for("max_tokens = 5")
    screen.wait_for(">>> ")
    screen.type("/nonsense\r")
    screen.wait_for("unknown command /nonsense")
    screen.wait_for(">>> ")
    screen.type("half a li")
    screen.interrupt()  # Ctrl-C at the prompt clears the line
    screen.wait_for("(Ctrl-C again or Ctrl-D leaves)")
    screen.wait_for(">>> ")
    screen.type("again\r")
    screen.wait_for("again")
    screen.wait_for(">>> ")
    screen.type(f"/save {saved}\r")
    screen.wait_for("Saved 4 messages")
    screen.wait_for(">>> ")
    screen.type("\x04")  # Ctrl-D leaves
    assert screen.exit_code() == 0

    turns = json.loads(saved.read_text())["messages"]
    assert [t["role"] for t in turns] == ["user", "assistant"] * 2
    assert turns[0]["content"] == "first line\nsecond line" and turns[2]["content"] == "again"
    assert turns[1]["content"]  # what had come before Ctrl-C
    history = load_history(tmp_path / "state" / "fathom" / "chat_history.jsonl")
    assert history[0] == "first line\nsecond line" and "half a li" not in history


def test_a_full_context_forgets_with_a_notice_and_ctrl_c_twice_leaves(tiny_folder, tmp_path):
    env = os.environ | {"XDG_STATE_HOME": str(tmp_path), "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    screen = Terminal([sys.executable, "-m", "fathom", "chat", str(tiny_folder), "--max-tokens", "30"], env)
    screen.wait_for(">>> ")
    for _ in range(2):
        screen.type("the little fish swims in the deep sea and the bird sings in the tall tree all day long\r")
        screen.wait_for("day long")
        shown = screen.wait_for(">>> ")
        if "are forgotten" in shown:
            break
    else:
        screen.type("the little fish swims in the deep sea and the bird sings\r")
        screen.wait_for("are forgotten")
        screen.wait_for(">>> ")
    screen.type("word " * 300 + "\r")
    screen.wait_for("the context holds 128")
    screen.wait_for(">>> ")
    screen.interrupt()
    screen.wait_for("(Ctrl-C again or Ctrl-D leaves)")
    screen.wait_for(">>> ")
    screen.interrupt()
    assert screen.exit_code() == 0
