"""What the server says when it is ready.

    minnow   22.4M parameters, 6.5M activated per token
    weights  FP8 (embedding, head and norms BF16) on cpu
    cache    524,288 tokens in 2240.0 MiB; one request: 8,192
    sampling temperature 0.6, top_p 0.95, where a request does not say otherwise

and so on, one line per subject.
"""

from __future__ import annotations

from fathom.engine.defaults import described
from fathom.engine.llm import LLM
from fathom.model.cost import parameters
from fathom.server.settings import KEYS_VARIABLE, Settings
from fathom.server.static_files import docs_files, page_files


def ready_text(llm: LLM, settings: Settings, port: int) -> str:
    """One line per subject."""
    url = f"http://{_shown(settings.host)}:{port}"
    counts = parameters(llm.model.config)
    engine = llm.engine
    size = f"{_count(counts.total)} parameters, {_count(counts.activated)} activated per token"
    cache = f"{engine.cache_tokens:,} tokens in {_cache_bytes(llm) / 2**20:.1f} MiB"
    lines = {
        "model": f"{settings.model_id}, {size}",
        "weights": f"{llm.precision} on {llm.model.embed_tokens.weight.device}",
        "cache": f"{cache}; one request: {llm.max_model_len:,}",
        "drafts": engine.stats().speculation,
        "sampling": f"{described(llm.sampling)}, where a request does not say otherwise",
        "kernels": {"cpu": "C++, compiled for this machine", "torch": "PyTorch"}[llm.kernels],
        "chat page": f"{url}/" if "/" in page_files() else "not in this installation",
        "API": f"{url}/v1" + (f", reference at {url}/docs" if docs_files() else f", reference at {url}/openapi.json"),
        "keys": _keys(settings),
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items() if value)


def _keys(settings: Settings) -> str:
    if settings.api_keys:
        return f"{len(settings.api_keys)}, one of them is needed for every route but /health"
    if settings.loopback:
        return "none: every program on this machine may ask"
    return f"NONE: everyone who reaches {settings.host} may ask; give --api-key-file or {KEYS_VARIABLE}"


def _cache_bytes(llm: LLM) -> int:
    """Of the pools of all layers, the MTP module's included."""
    paged = llm.engine.runner.paged
    pools = [*paged.pools, *([] if paged.mtp_pool is None else [paged.mtp_pool])]
    tensors = [t for pool in pools for t in (pool.latent, pool.k_rope, pool.scale) if t is not None]
    return sum(t.numel() * t.element_size() for t in tensors)


def _shown(host: str) -> str:
    """A host as a person can open it."""
    if host in ("0.0.0.0", "::", ""):
        return "localhost"
    return f"[{host}]" if ":" in host else host


def _count(number: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return str(number)
