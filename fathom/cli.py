"""The command line: a table of sub-commands, each imported only when it is used.

A command module exposes `Args` (a frozen dataclass, read by tyro), `run(args) -> int` and, if it likes, `EXAMPLES`,
printed at the end of its help. One with a syntax of its own exposes `main(argv) -> int` instead.

Mistakes of the user (wrong flags, UserError, files that cannot be read or written) are one line on standard error and
exit code 2; Ctrl-C exits 130, a closed pipe 141. Anything else is a defect and keeps its traceback.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from fathom import __version__

COMMANDS: dict[str, tuple[str, str]] = {  # name -> (module, one line of help)
    "chat": ("fathom.commands.chat", "talk with a model, or answer one prompt (-p, standard input)"),
    "generate": ("fathom.commands.generate", "answer a file of prompts"),
    "serve": ("fathom.commands.serve", "serve an OpenAI-compatible API and a chat page"),
    "models": ("fathom.commands.models", "list the models that have names, fetch or remove one"),
    "check": ("fathom.commands.check", "compare this machine's fast path with the reference, measure its speed"),
    "inspect": ("fathom.commands.inspect", "show what a checkpoint holds, from its headers alone"),
    "convert": ("fathom.commands.convert", "convert a checkpoint between FP8, BF16, demo and Hugging Face layout"),
    "upcycle": ("fathom.commands.upcycle", "make a DeepSeek-V3 checkpoint of a Llama-type model"),
    "corpus": ("fathom.commands.corpus", "build the training corpus and its tokenizer"),
    "data": ("fathom.commands.data", "build token shards from text files, show a batch of them"),
    "needle": ("fathom.commands.needle", "find a number hidden in a long text: lengths x depths, as a heat map"),
    "acceptance": ("fathom.commands.acceptance", "measure how many MTP drafts a model accepts, and what they bring"),
    "train": ("fathom.commands.train", "train a model from a recipe, report on a run, export it"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(args)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # help was printed
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        from fathom.runtime import drop_output

        drop_output()
        return 141
    except Exception as error:
        message = _user_message(error)
        if message is None:
            raise
        return fail(message)


def fail(message: str) -> int:
    """Say what the user did wrong, in one line."""
    print(f"fathom: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def usage() -> str:
    """The table of commands."""
    lines = [f"  {name:<10} {help_line}" for name, (_, help_line) in COMMANDS.items()]
    head = ["usage: fathom COMMAND ...", "", "DeepSeek-V3 in one code base: load, convert, talk to, serve, train.", ""]
    foot = ["", "`fathom COMMAND --help` explains a command; `fathom --version` prints the version."]
    return "\n".join(head + lines + foot)


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if args[0] in ("-V", "--version"):
        print(f"fathom {__version__}")
        return 0
    name = args[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean `fathom {near[0]}`?" if near else "`fathom --help` lists the commands"
        return fail(f"unknown command {name!r}; {hint}")
    module = importlib.import_module(COMMANDS[name][0])
    if hasattr(module, "main"):  # a command with a syntax of its own
        return int(module.main(args[1:]))
    from fathom.commands.flags import parse_flags

    args_of = parse_flags(module.Args, f"fathom {name}", args[1:], examples=getattr(module, "EXAMPLES", ""))
    return int(module.run(args_of))


def _user_message(error: Exception) -> str | None:
    """The line for an error that the user can act on; None for a defect of ours."""
    from fathom.runtime import UserError

    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return None
