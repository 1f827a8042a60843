"""Chat messages to the text a model was trained on, and back.

A checkpoint brings its own Jinja template and we use it; `v3` and `v3.1` are built in, written as exact grammars that
chat_parse.py inverts. Which of the two a checkpoint's template speaks is found by rendering a small conversation, not
by a name.

Control tokens in content. A user can type `<｜Assistant｜>`, and a tool can return it. In a string nobody can tell it
from the real token, so `render` is for eyes and tests, and a model is fed by `encode`: before rendering, every
control token inside content is broken up with one character that occurs nowhere else; after rendering, what the
tokenizer still sees as control tokens came from the template. The broken stretches lose the mark and are encoded as
plain text: the model reads the very characters the user typed, as characters. Content without control tokens gives
exactly the ids of the rendered string. (Think tags in an assistant's own content stay alive: templates look for them
to drop old thoughts.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fathom.runtime import UserError
from fathom.text.call_arguments import Arguments
from fathom.text.chat_messages import Message, normalize_messages, normalize_tools
from fathom.text.chat_parse import parse_assistant, parse_conversation
from fathom.text.chat_tokens import ASSISTANT, BOS, CALL_BEGIN, CALL_END, END_THINK, EOS, SEP, THINK, USER
from fathom.text.template_engine import MAX_TEMPLATE_CHARS, compile_template, render_template
from fathom.text.tokenizer import Tokenizer, optional_json, token_text

BUILTIN = {"v3": "v3.jinja", "v3.1": "v3_1.jinja"}
_MARKS = [chr(c) for c in range(0xFDD0, 0xFDF0)]  # Unicode noncharacters: never assigned, never in honest text


class ChatTemplate:
    """One chat format. Build it with `from_pretrained` or `builtin`."""

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = BOS,
        eos_token: str = EOS,
        tool_source: str | None = None,
        name: str = "chat template",
        note: str = "",
    ) -> None:
        self.bos_token, self.eos_token, self.name = bos_token, eos_token, name
        self.note = note  # something the person should know, such as a fallback
        self.source = source
        self._template = compile_template(source, name)
        self._tool_template = compile_template(tool_source, name) if tool_source is not None else self._template
        self.format = self._probe_format()
        self._prints_tools = self._probe_tools()

    @classmethod
    def builtin(cls, format: str = "v3", *, bos_token: str = BOS, eos_token: str = EOS, note: str = "") -> ChatTemplate:
        """`v3` or `v3.1`."""
        if format not in BUILTIN:
            raise UserError(f"chat format {format!r} is not built in; use one of {', '.join(BUILTIN)}")
        source = (Path(__file__).parent / "templates" / BUILTIN[format]).read_text(encoding="utf-8")
        return cls(source, bos_token=bos_token, eos_token=eos_token, name=f"built-in {format} template", note=note)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> ChatTemplate:
        """A checkpoint's template: chat_template.jinja, else tokenizer_config.json, else built-in v3 with a note."""
        folder = Path(folder)
        settings = optional_json(folder / "tokenizer_config.json")
        bos, eos = (token_text(settings, key) for key in ("bos_token", "eos_token"))
        file = folder / "chat_template.jinja"
        if file.exists():
            name, tool_source = str(file), None
            source: str | None = _read_template(file)
        else:
            name = f"{folder / 'tokenizer_config.json'}: chat_template"
            source, tool_source = _named_templates(settings.get("chat_template"), name)
        if source is None:
            note = f"{folder} brings no chat template; the built-in v3 template is used"
            return cls.builtin("v3", bos_token=BOS if bos is None else bos, eos_token=eos or EOS, note=note)
        return cls(source, bos_token=bos or "", eos_token=eos or "", tool_source=tool_source, name=name)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False,
        add_generation_prompt: bool = True,
    ) -> str:
        """The conversation as text, BOS included. To feed a model use `encode`."""
        return self._render(normalize_messages(messages), normalize_tools(tools), thinking, add_generation_prompt)

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """The conversation as token ids; control tokens come from the template alone, never from content."""
        plain_messages, plain_tools = normalize_messages(messages), normalize_tools(tools)
        used = repr((plain_messages, plain_tools))
        mark = next((m for m in _MARKS if m not in used and repr(m)[1:-1] not in used), None)
        if mark is None:
            raise UserError("the messages use all 32 noncharacters U+FDD0 to U+FDEF; remove them")
        guarded = [_guard_message(m, tokenizer, mark) for m in plain_messages]
        text = self._render(
            guarded, _guard(plain_tools, tokenizer.control_tokens.values(), mark), thinking, add_generation_prompt
        )
        return tokenizer.encode_marked(text, mark)

    def parse(self, text: str) -> list[Message]:
        """A rendered conversation back to its messages (formats v3 and v3.1)."""
        return parse_conversation(text, self.format, self.bos_token)

    def parse_assistant(self, text: str, *, thinking: bool = False) -> Message:
        """What a model wrote, as a message. `thinking`: see `thought_is_open` of the prompt."""
        return parse_assistant(text, self.format, thinking, self.eos_token)

    @staticmethod
    def thought_is_open(prompt: str) -> bool:
        """Whether a rendered prompt ends inside a thought, so that the completion begins there."""
        return prompt.rstrip().endswith(THINK)

    def _render(
        self, messages: list[Message], tools: list[dict[str, Any]] | None, thinking: bool, add_generation_prompt: bool
    ) -> str:
        if tools and not self._prints_tools:
            messages, tools = self._with_tools_in_system(messages, tools), None
        values = {
            "messages": messages,
            "tools": tools,
            "thinking": thinking,
            "enable_thinking": thinking,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
        }
        return render_template(self._tool_template if tools else self._template, values, self.name)

    def _with_tools_in_system(self, messages: list[Message], tools: list[dict[str, Any]]) -> list[Message]:
        """For a template that drops tool definitions, like V3's first: the built-in's text for them ends the system."""
        if self.format not in BUILTIN:
            raise UserError(f"{self.name} has no place for tool definitions; leave tools out or use another template")
        writer = ChatTemplate.builtin(self.format, bos_token="")
        text = writer._render([{"role": "user", "content": ""}], tools, False, False).removesuffix(USER)
        system = [m["content"] for m in messages if m["role"] == "system"]
        rest = [m for m in messages if m["role"] != "system"]
        return [{"role": "system", "content": "\n\n".join([*system, text])}, *rest]

    def _probe_tools(self) -> bool:
        """Whether the template writes tool definitions anywhere."""
        self._prints_tools = True
        name = "probe_of_tools"
        tool = {"type": "function", "function": {"name": name, "description": "", "parameters": {}}}
        try:
            return name in self._render([{"role": "user", "content": "u"}], [tool], False, True)
        except UserError:
            return True  # it does something with tools; its own error will say what

    def _probe_format(self) -> str:
        """`v3`, `v3.1` or `other`: by the calls the template writes, or else by its generation prompt."""
        call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
        user = {"role": "user", "content": "u"}
        try:
            calls = self._render(
                [user, {"role": "assistant", "content": None, "tool_calls": [call]}], None, False, False
            )
        except UserError:
            calls = ""
        if f"{CALL_BEGIN}f{SEP}{{}}{CALL_END}" in calls:
            return "v3.1"
        if f"{CALL_BEGIN}function{SEP}f\n```json\n{{}}\n```{CALL_END}" in calls:
            return "v3"
        try:
            prompt = self._render([user], None, False, True)
        except UserError:
            return "other"
        if prompt.endswith(ASSISTANT + END_THINK):
            return "v3.1"
        return "v3" if re.search(rf"{re.escape(ASSISTANT)}({THINK}\n?)?$", prompt) else "other"


def _read_template(path: Path) -> str:
    try:
        if path.stat().st_size > 4 * MAX_TEMPLATE_CHARS:  # before reading it; a character is at most four bytes
            raise UserError(f"{path} has {path.stat().st_size} bytes, too many for a template; use a smaller one")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error}); it must be a UTF-8 text file") from None


def _named_templates(value: Any, name: str) -> tuple[str | None, str | None]:
    """(default template, template for requests with tools) of a string or of a list of {"name", "template"}."""
    if value is None or isinstance(value, str):
        return value, None
    named: dict[str, str] = {}
    for entry in value if isinstance(value, list) else [None]:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("name", "template")):
            raise UserError(f'{name} must be a string or a list of {{"name", "template"}} objects; correct it')
        named[entry["name"]] = entry["template"]
    if "default" not in named:
        raise UserError(f"{name} has the templates {sorted(named)}, none is called 'default'; name one so")
    return named["default"], named.get("tool_use")


def _guard_message(message: Message, tokenizer: Tokenizer, mark: str) -> Message:
    """The message with every control token in its texts broken up; an assistant's content keeps its think tags."""
    tokens = tokenizer.control_tokens.values()
    guarded: Message = _guard(message, tokens, mark)
    if message["role"] == "assistant":
        alive = [t for t in tokens if t not in (THINK, END_THINK)]
        guarded["content"] = _guard(message["content"], alive, mark)
    return guarded


def _guard(value: Any, tokens: Any, mark: str) -> Any:
    """`value` with `mark` after the first character of each control token in its strings."""
    if isinstance(value, Arguments):  # the object apart: an escape in the text may spell a token
        return value.mapped(lambda part: _guard(part, tokens, mark))
    if isinstance(value, dict):
        return {_guard(k, tokens, mark): _guard(v, tokens, mark) for k, v in value.items()}
    if isinstance(value, list):
        return [_guard(v, tokens, mark) for v in value]
    if not isinstance(value, str):
        return value
    starts = {
        m.start() + 1 for token in tokens if token in value for m in re.finditer(f"(?={re.escape(token)})", value)
    }
    pieces = [value[a:b] for a, b in zip([0, *sorted(starts)], [*sorted(starts), len(value)], strict=True)]
    return mark.join(pieces)
