"""`fathom serve`: the OpenAI API and the chat page for one model."""

from __future__ import annotations

import secrets
import socket
import sys
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import tyro

from fathom.engine.llm import LLM
from fathom.engine.service import EngineService
from fathom.models.card import starters
from fathom.models.default import choose
from fathom.runtime import UserError
from fathom.server.app import create_app
from fathom.server.serving import bind, serve
from fathom.server.settings import Settings, public_name, read_keys
from fathom.server.startup import ready_text

EXAMPLES = """
  fathom serve                                        smol, fetched at the first start, at http://127.0.0.1:8000
  fathom serve DIR --port 9000 --cache-tokens 200000  another model, with more cache
  fathom serve DIR --host 0.0.0.0 --api-key-file keys to others, with keys

  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
       -d '{"model": "smol", "messages": [{"role": "user", "content": "Hello"}]}'
"""


@dataclass(frozen=True)
class Args:
    """Serve a model: OpenAI API under /v1, chat page at /, API reference at /docs."""

    model: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="[MODEL]")]] = None
    """A folder in Hugging Face layout, a hub id, or a name that `fathom models` lists; default: smol."""
    host: str = "127.0.0.1"
    """Address to listen at. A loopback address answers this machine only; 0.0.0.0 answers everyone."""
    port: int = 8000
    """Port to listen at; 0 takes a free one."""
    dtype: str = "auto"
    """auto, bfloat16, float32 or float16."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    max_model_len: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Longest prompt and answer together; default: what the model allows."""
    cache_tokens: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Tokens that the latent cache holds, for all requests together; default: from free memory."""
    speculative: Annotated[str, tyro.conf.arg(metavar="auto|on|off|N")] = "auto"
    """Draft with the MTP module: where it pays, always, never, or N drafts a step."""
    cache: Literal["auto", "float32", "bfloat16", "fp8"] = "auto"
    """Format of the latent cache; fp8: latents in E4M3, rotated keys in BF16."""
    kernels: Literal["auto", "cpu", "torch"] = "auto"
    """What runs the model: cpu is C++ compiled for this machine, auto takes it where it can."""
    max_running: int = 64
    """Most answers in one batch."""
    max_waiting: int = 256
    """Most requests in the queue; one more gets 429."""
    api_key_file: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Keys, one a line; FATHOM_API_KEYS (commas between) adds to them. Without any, no key is asked for."""
    cors_origin: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="ORIGIN")] = ()
    """Let web pages of this origin (https://host:port, or *) use the API; may be given again."""
    seed: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Where requests without a seed get theirs; default: a new one each start."""
    drain_seconds: float = 60.0
    """After SIGTERM running answers have this long to finish."""
    quiet: bool = False
    """No line per request on standard error."""


def run(args: Args) -> int:
    """Check what can be checked without the model, take the port, load, serve."""
    speculative = parse_speculative(args.speculative)
    if args.drain_seconds < 0 or args.max_waiting < 1:
        raise UserError("--drain-seconds must be at least 0 and --max-waiting at least 1")
    settings = Settings(
        host=args.host,
        port=args.port,
        api_keys=read_keys(args.api_key_file),
        cors_origins=check_origins(args.cors_origin),
        drain_seconds=args.drain_seconds,
        quiet=args.quiet,
    )
    listener = bind(args.host, args.port)
    with listener:
        model = choose(args.model)
        llm = LLM(
            model,
            dtype=args.dtype,
            device=args.device,
            max_model_len=args.max_model_len,
            cache_tokens=args.cache_tokens,
            speculative=speculative,
            seed=secrets.randbits(32) if args.seed is None else args.seed,
            max_running=args.max_running,
            cache=args.cache,
            kernels=args.kernels,
        )
        assert llm.folder is not None
        settings = replace(settings, model_id=public_name(model), starters=starters(llm.folder))
        return serve_llm(llm, settings, listener, args.max_waiting)


def parse_speculative(text: str) -> bool | int | Literal["auto"]:
    """auto, on, off or a number of drafts."""
    if text == "auto":
        return "auto"
    if text in ("on", "off"):
        return text == "on"
    if text.isascii() and text.isdecimal():
        return int(text)
    raise UserError(f"--speculative is {text!r}; use auto, on, off or a number of drafts")


def check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    """Origins as browsers write them: scheme://host[:port], no path."""
    for origin in origins:
        scheme, separator, host = origin.partition("://")
        if origin != "*" and (scheme not in ("http", "https") or not separator or not host or "/" in host):
            raise UserError(f"--cors-origin is {origin!r}; give scheme://host:port without a path, or *")
    return origins


def serve_llm(llm: LLM, settings: Settings, listener: socket.socket, max_waiting: int) -> int:
    """Start the engine's thread, serve, and stop it whatever happens."""
    if llm.template is not None and llm.template.note:
        print(f"fathom: {llm.template.note}", file=sys.stderr)
    service = EngineService(llm, max_waiting=max_waiting)
    app = create_app(service, settings)
    service.start()
    try:
        return serve(app, settings, listener, on_ready=lambda: announce(llm, settings, listener))
    finally:
        service.stop()


def announce(llm: LLM, settings: Settings, listener: socket.socket) -> None:
    """What is served and where, on standard error."""
    print(ready_text(llm, settings, listener.getsockname()[1]), file=sys.stderr, flush=True)
