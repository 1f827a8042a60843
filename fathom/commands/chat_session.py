"""A conversation without a terminal: what was said, the settings, and the slash commands that change them.

`chat.py` feeds it lines and prints what it answers; nothing here reads a keyboard or loads a model.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fathom.engine.outputs import Metrics
from fathom.engine.params import SamplingParams
from fathom.runtime import UserError, at_home, read_json, write_json

Message = dict[str, Any]

SETTINGS = (
    "temperature", "top_p", "top_k", "min_p", "max_tokens", "stop", "seed",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "thinking",
)  # fmt: skip

HELP = """\
/reset            forget the conversation (the system text stays)
/system TEXT      set the system text and start anew; without TEXT remove it
/set              show the settings
/set KEY VALUE    change one: {settings}
/save FILE        write the conversation to FILE
/load FILE        go on with a saved conversation
/stats            tokens and speed so far
/exit             leave (so does Ctrl-D)
Ctrl-C stops an answer. A line that ends in a backslash goes on; three double quotes begin and end a block.
A space before a slash sends the line as text."""


@dataclass(frozen=True)
class Reply:
    """What a slash command has to say."""

    text: str
    exit: bool = False


@dataclass
class ChatSession:
    """`turns` alternate user, assistant, ...; while an answer is being made the last one is the user's."""

    params: SamplingParams
    system: str | None = None
    thinking: bool = False
    model: str = ""
    turns: list[Message] = field(default_factory=list)
    answers: list[Metrics] = field(default_factory=list)

    def messages(self) -> list[Message]:
        """The conversation as the chat template wants it."""
        return ([{"role": "system", "content": self.system}] if self.system else []) + self.turns

    def ask(self, text: str) -> None:
        """The user's turn."""
        self.turns.append({"role": "user", "content": text})

    def answered(self, message: Message | None, metrics: Metrics | None = None) -> None:
        """The model's turn, perhaps cut short; None: there was no answer at all, and the question is taken back."""
        if message is None:
            self.turns.pop()
        else:
            self.turns.append(message)
        if metrics is not None:
            self.answers.append(metrics)

    def fit(self, count: Callable[[list[Message]], int], limit: int) -> int:
        """Drop the oldest turns (a question with its answer) until a quarter of the context, or max_tokens if that is
        less, is free for the answer. Returns how many were dropped; the system text and the last question stay."""
        room = min(self.params.max_tokens or limit, limit // 4)
        dropped = 0
        while len(self.turns) > 1 and count(self.messages()) + room > limit:
            del self.turns[:2]
            dropped += 1
        return dropped

    # ---- slash commands --------------------------------------------------------------------------------------------

    def command(self, line: str) -> Reply:
        """Run `/name argument`; a mistake is a UserError and changes nothing."""
        name, _, argument = line.strip()[1:].partition(" ")
        commands: dict[str, Callable[[str], Reply]] = {
            "help": lambda _: Reply(HELP.format(settings=", ".join(SETTINGS))),
            "reset": self._reset,
            "system": self._system,
            "set": self._set,
            "save": self._save,
            "load": self._load,
            "stats": self._stats,
            "exit": lambda _: Reply("", exit=True),
            "quit": lambda _: Reply("", exit=True),
        }
        if name not in commands:
            near = difflib.get_close_matches(name, commands, n=1)
            hint = f"did you mean /{near[0]}?" if near else "/help lists the commands"
            raise UserError(f"unknown command /{name}; {hint} (a space before the slash sends the line as text)")
        return commands[name](argument.strip())

    def _reset(self, _: str) -> Reply:
        self.turns.clear()
        return Reply("The conversation is forgotten.")

    def _system(self, text: str) -> Reply:
        self.system = text or None
        self.turns.clear()
        return Reply(f"The system text is {'set' if text else 'removed'}; the conversation starts anew.")

    def _set(self, argument: str) -> Reply:
        key, _, value = argument.partition(" ")
        if not key:
            return Reply("\n".join(f"{k} = {json.dumps(self._setting(k), ensure_ascii=False)}" for k in SETTINGS))
        key = key.replace("-", "_")
        if key not in SETTINGS:
            raise UserError(f"unknown setting {key!r}; known are {', '.join(SETTINGS)}")
        if not value.strip():
            raise UserError(f"/set {key} needs a value; now it is {json.dumps(self._setting(key), ensure_ascii=False)}")
        parsed = _parse_value(key, value.strip())
        if key == "thinking":
            if not isinstance(parsed, bool):
                raise UserError(f"thinking is {value!r}; it must be on or off")
            self.thinking = parsed
        else:
            self.params = self.params.replace(**{key: parsed})
        return Reply(f"{key} = {json.dumps(self._setting(key), ensure_ascii=False)}")

    def _setting(self, key: str) -> Any:
        return self.thinking if key == "thinking" else getattr(self.params, key)

    def _save(self, name: str) -> Reply:
        path = _path("save", name)
        write_json(path, self.to_dict())
        return Reply(f"Saved {len(self.turns)} messages to {path}.")

    def _load(self, name: str) -> Reply:
        path = _path("load", name)
        try:
            loaded = ChatSession.from_dict(read_json(path))
        except UserError as error:
            raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
        self.system, self.turns = loaded.system, loaded.turns
        self.params, self.thinking = loaded.params, loaded.thinking
        return Reply(f"Loaded {len(self.turns)} messages from {path}.")

    def _stats(self, _: str) -> Reply:
        generated = sum(m.generated_tokens for m in self.answers)
        lines = [f"{len(self.turns)} messages, {len(self.answers)} answers, {generated} tokens generated"]
        if self.answers:
            last = self.answers[-1]
            lines.append(
                f"last answer: {last.prompt_tokens} tokens read, {last.generated_tokens} written, first after "
                f"{last.time_to_first_token:.2f} s, {last.tokens_per_second:.1f} tokens/s"
            )
        return Reply("\n".join(lines))

    # ---- files -----------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """What /save writes."""
        return {"format": "fathom-chat-1", "model": self.model, "system": self.system, "thinking": self.thinking,
                "params": self.params.to_dict(), "messages": self.turns}  # fmt: skip

    @classmethod
    def from_dict(cls, data: Any) -> ChatSession:
        """What /load reads; anything unexpected is a UserError."""
        expected = {"format", "model", "system", "thinking", "params", "messages"}
        if not isinstance(data, dict) or data.get("format") != "fathom-chat-1":
            raise UserError("this is not a saved conversation (no format fathom-chat-1)")
        if set(data) != expected:
            raise UserError(f"a saved conversation has the fields {sorted(expected)}; this one has {sorted(data)}")
        system, thinking, turns = data["system"], data["thinking"], data["messages"]
        if not isinstance(system, str | None) or not isinstance(thinking, bool) or not isinstance(data["params"], dict):
            raise UserError("system must be a text or null, thinking true or false, params an object")
        if not isinstance(turns, list) or len(turns) % 2:
            raise UserError("messages must be a list of questions, each with its answer")
        for i, turn in enumerate(turns):
            role = "assistant" if i % 2 else "user"
            texts = turn if isinstance(turn, dict) else {}
            fine = texts.get("role") == role and isinstance(texts.get("content"), str)
            if not fine or not all(isinstance(v, str) for v in texts.values()):
                raise UserError(f"message {i} must be one of role {role} with a text as content")
        params = SamplingParams.from_dict(data["params"])
        return cls(params, system, thinking, str(data["model"]), list(turns))


def _path(command: str, name: str) -> Path:
    if not name:
        raise UserError(f"/{command} needs a file name")
    return at_home(name)


def _parse_value(key: str, value: str) -> Any:
    """`0.7`, `none`, `on`, a JSON list; a stop that is no list is one string, with \\n for a line break."""
    words = {"none": None, "off": False, "on": True, "true": True, "false": False}
    if key == "stop" and not value.startswith("["):
        return () if value.lower() == "none" else (value.replace("\\n", "\n"),)
    if value.lower() in words:
        return words[value.lower()]
    try:
        return json.loads(value)
    except ValueError:
        return value  # SamplingParams says what it should have been
