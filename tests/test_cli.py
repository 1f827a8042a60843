"""The command table and what the user sees when something is wrong: one line, exit code 2."""

from __future__ import annotations

import dataclasses
import errno
import subprocess
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Literal

import pytest
import tyro

import fathom
from fathom import cli
from fathom.commands.flags import parse_flags
from fathom.runtime import UserError


@dataclass(frozen=True)
class Args:
    """A command for tests."""

    what: tyro.conf.Positional[Literal["ok", "user", "bug", "disk", "stop"]]
    temperature: float = 1.0
    """How hot."""
    name: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    fast: bool = False


def run(args: Args) -> int:
    errors = {
        "user": UserError("width is 7,\nthe limit is 5"),
        "bug": KeyError("a defect of ours"),
        "disk": OSError(errno.ENOSPC, "No space left on device", "/some/file"),
        "stop": KeyboardInterrupt(),
    }
    if args.what in errors:
        raise errors[args.what]
    print(args)
    return 3


@pytest.fixture
def command(monkeypatch):
    module = ModuleType("fathom.commands.for_tests")
    module.Args, module.run, module.EXAMPLES = Args, run, "\n  fathom try ok --fast\n"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "try", (module.__name__, "for tests"))
    return lambda *argv: cli.main(["try", *argv])


def one_error(capsys):
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("fathom: error: ") and err.endswith("\n") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_the_table(argv, capsys):
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    for name, (_, line) in cli.COMMANDS.items():
        assert f"{name} " in out and line in out
    assert set(cli.COMMANDS) == {
        "chat",
        "generate",
        "serve",
        "models",
        "check",
        "inspect",
        "convert",
        "upcycle",
        "acceptance",
        "corpus",
        "data",
        "needle",
        "train",
    }


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fathom {fathom.__version__}\n"


@pytest.mark.parametrize(("typed", "hint"), [("chatt", "fathom chat"), ("Convert", "fathom convert"), ("z", "--help")])
def test_an_unknown_command_gets_a_hint(typed, hint, capsys):
    assert cli.main([typed]) == 2
    assert hint in one_error(capsys)


def test_flags_reach_the_command(command, capsys):
    assert command("ok", "--temperature", "0.5", "--fast", "--name", "x y") == 3
    assert capsys.readouterr().out == f"{Args('ok', 0.5, 'x y', True)}\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["ok", "--temprature", "1"], ["--temprature", "perhaps --temperature?"]),
        (["ok", "--temperature", "hot"], ["--temperature", "hot"]),
        (["ok", "--temperature"], ["--temperature"]),
        (["nothing"], ["nothing", "'ok'"]),
        (["ok", "too", "many"], ["too", "many"]),
        ([], ["missing", "{ok,user,bug,disk,stop}"]),
        (["ok", "--name", "a", "--colour", "a very long value " * 20], ["--colour", "a very long value a very"]),
    ],
)
@pytest.mark.parametrize("boxes", ["utf8", "ascii"])
def test_a_wrong_flag_is_one_line(command, capsys, monkeypatch, argv, words, boxes):
    monkeypatch.setattr("tyro._fmtlib._FORCE_UTF8_BOXES", boxes == "utf8", raising=False)
    assert command(*argv) == 2
    error = one_error(capsys)
    assert error.endswith("; see `fathom try --help`\n") and error.count("--help") == 1
    assert not set("│╭─╰|+") & set(error) and "---" not in error
    for word in words:
        assert word in error


def test_help_of_a_command_ends_with_an_example(command, capsys):
    assert command("--help") == 0
    out = capsys.readouterr().out
    assert "How hot." in out and out.endswith("examples:\n  fathom try ok --fast\n")


def test_errors(command, capsys):
    assert command("user") == 2
    assert one_error(capsys) == "fathom: error: width is 7, the limit is 5\n"
    assert command("disk") == 2
    assert one_error(capsys) == "fathom: error: /some/file: No space left on device\n"
    assert command("stop") == 130
    with pytest.raises(KeyError):  # a defect keeps its traceback
        command("bug")


def test_defaults_can_come_from_a_file():
    default = Args("user", 0.25)
    parsed = parse_flags(Args, "fathom try", ["--name", "n"], default=default)
    assert parsed == dataclasses.replace(default, name="n")


def test_a_closed_pipe_is_silent():
    program = "import sys, fathom.cli as c; c.usage = lambda: 'x' * 10_000_000; sys.exit(c.main([]))"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_listing_commands_does_not_load_torch():
    program = "import sys, fathom.cli; fathom.cli.main([]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL).returncode == 0


def test_the_module_runs():
    done = subprocess.run([sys.executable, "-m", "fathom", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "fathom 0.1.0\n")


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_explains_itself_with_an_example(name, capsys):
    assert cli.main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert "example" in out and f"fathom {name}" in out
