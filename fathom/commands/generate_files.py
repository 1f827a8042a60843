"""The two files of `fathom generate`: requests read from the input, answers found in the output of an earlier run."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fathom.engine.params import SamplingParams
from fathom.engine.sampling import derive_seed
from fathom.runtime import UserError

BATCH_URLS = ("/v1/chat/completions", "/v1/completions")
LONGEST_ID = 512


@dataclass(frozen=True)
class Request:
    """One checked line of the input."""

    line: int  # counted from 1, for messages
    prompt: str | list[dict[str, Any]]
    params: SamplingParams
    key: str
    name: dict[str, Any]  # "id" or "custom_id" of the input, repeated in the output


def read_requests(path: Path, base: SamplingParams, model: str, *, chat: bool = False) -> list[Request]:
    """Every line of the input as a Request; the first bad one is a UserError that names it."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from None
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise UserError(f"{path} is empty; it needs one prompt per line")
    read = _read_object if path.suffix in (".jsonl", ".ndjson") else _read_text
    requests = []
    for index, line in enumerate(lines):
        try:
            prompt, fields, name = read(line.rstrip("\r"))
            params = base.replace(**fields)
        except UserError as error:
            raise UserError(f"{path} line {index + 1}: {error}") from None
        if "seed" not in fields:
            params = params.replace(seed=derive_seed(base.seed or 0, index))
        if chat and isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        requests.append(Request(index + 1, prompt, params, _key(model, prompt, params), name))
    return requests


Line = tuple[str | list[dict[str, Any]], dict[str, Any], dict[str, Any]]  # prompt, sampling fields, name


def _read_text(line: str) -> Line:
    if not line.strip():
        raise UserError("the line is empty; every line must hold a prompt")
    return line, {}, {}


def _read_object(line: str) -> Line:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not valid JSON ({error})") from None
    if isinstance(fields, dict) and "body" in fields:
        return _read_batch(fields)
    name = {"id": fields.pop("id")} if isinstance(fields, dict) and "id" in fields else {}
    return (*_prompt_of(fields), _checked(name))


def _read_batch(line: dict[str, Any]) -> Line:
    """A line for OpenAI's Batch API. `model` in it is not used: the command names the model."""
    unknown = sorted(line.keys() - {"custom_id", "method", "url", "body"})
    if unknown or line.get("method", "POST") != "POST" or line.get("url", BATCH_URLS[0]) not in BATCH_URLS:
        odd = f"the field {unknown[0]!r}" if unknown else f"{line.get('method', 'POST')} {line.get('url', '')}"
        raise UserError(f"a batch line has custom_id, body and POST to {' or '.join(BATCH_URLS)}, not {odd}")
    body = dict(line["body"]) if isinstance(line["body"], dict) else line["body"]
    if isinstance(body, dict):
        body.pop("model", None)
        if "max_completion_tokens" in body:
            body["max_tokens"] = body.pop("max_completion_tokens")
        if body.pop("stream", False):
            raise UserError("stream has no effect in a batch; leave it out")
    name = {"custom_id": line["custom_id"]} if "custom_id" in line else {}
    return (*_prompt_of(body), _checked(name))


def _checked(name: dict[str, Any]) -> dict[str, Any]:
    for key, value in name.items():
        if not isinstance(value, str | int) or len(str(value)) > LONGEST_ID:
            raise UserError(f"{key} must be a number or a text of at most {LONGEST_ID} characters")
    return name


def _prompt_of(fields: Any) -> tuple[str | list[dict[str, Any]], dict[str, Any]]:
    if not isinstance(fields, dict) or ("prompt" in fields) == ("messages" in fields):
        raise UserError('it must be an object with either "prompt" or "messages"')
    prompt = fields.pop("prompt", None)
    messages = fields.pop("messages", None)
    if messages is None:
        if not isinstance(prompt, str) or not prompt:
            raise UserError("prompt must be a text of at least one character")
        return prompt, fields
    fine = isinstance(messages, list) and messages
    if not fine or not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages):
        raise UserError("messages must be a list of objects with role and content")
    return messages, fields


def _key(model: str, prompt: str | list[dict[str, Any]], params: SamplingParams) -> str:
    text = json.dumps([model, prompt, params.to_dict()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_done(output: Path, requests: list[Request], *, overwrite: bool) -> tuple[int, int]:
    """(answers already there, bytes they take). The file is only read here."""
    if output.exists() and not output.is_file():
        raise UserError(f"{output} is no plain file; choose another output file")
    if overwrite or not output.exists():
        return 0, 0
    data = output.read_bytes()
    keep = data.rfind(b"\n") + 1
    lines = data[:keep].splitlines()
    remedy = "give --overwrite to begin anew or choose another output file"
    try:
        keys = [_done_key(index, line) for index, line in enumerate(lines)]
        if keep < len(data) and not data[keep:].startswith(b'{"index": '[: len(data) - keep]):
            raise UserError(f"its line {len(lines) + 1} was not written by fathom generate")
        if len(keys) > len(requests):
            raise UserError(f"it holds {len(keys)} answers, the input {len(requests)} prompts")
        for key, request in zip(keys, requests, strict=False):
            if key != request.key:
                raise UserError(f"its line {request.line} answers another prompt, model or settings")
    except UserError as error:
        raise UserError(f"{output} does not belong to this run: {error}; {remedy}") from None
    return len(keys), keep


def _done_key(index: int, line: bytes) -> str:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("index") != index or not isinstance(found.get("request"), str):
        raise UserError(f"its line {index + 1} was not written by fathom generate")
    return str(found["request"])


@contextmanager
def only_writer(file: BinaryIO, path: Path) -> Iterator[None]:
    """Hold the output for one run; a full disk names it."""
    with suppress(OSError):  # a file system without locks
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another run is writing to {path}; wait or choose another output file") from None
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{path}: {error.strerror}; make room and start again: what is there is kept") from None
