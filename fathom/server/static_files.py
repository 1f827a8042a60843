"""The files of the chat page (at /) and of the API reference (at /docs), from a table made at the start.

A path is in the table or it is a 404: nothing outside the folder can be reached, and nothing is listed. The page may
load only what this server sends (Content-Security-Policy), so text that a model writes cannot run as a script or call
home. /docs is Swagger UI from the package fastapi-offline, so that it works without a network; it sets inline styles.
"""

from __future__ import annotations

import hashlib
import mimetypes
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

MAX_FILE_BYTES = 8 * 2**20
TYPES = {  # the operating system's table may lack or change them
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8", ".json": "application/json", ".svg": "image/svg+xml",
    ".woff2": "font/woff2", ".png": "image/png", ".ico": "image/x-icon", ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
}  # fmt: skip
PAGE_POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
DOCS_POLICY = PAGE_POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
DOCS_FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
DOCS_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Fathom API</title>
<link rel="icon" href="/docs/favicon.png"><link rel="stylesheet" href="/docs/swagger-ui.css"></head>
<body><div id="ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script><script src="/docs/start.js"></script></body>
</html>
"""
DOCS_START = """// Shows /openapi.json; a server with keys asks for one.
async function start() {
  let answer = await fetch("/openapi.json");
  if (answer.status === 401) {
    const key = window.prompt("API key");
    answer = await fetch("/openapi.json", { headers: { Authorization: "Bearer " + key } });
  }
  SwaggerUIBundle({ dom_id: "#ui", spec: await answer.json(), deepLinking: true });
}
start();
"""


@dataclass(frozen=True)
class StaticFile:
    data: bytes
    kind: str
    policy: str

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.data).hexdigest()[:32]}"'

    async def __call__(self, request: Request) -> Response:
        headers = {
            "content-security-policy": self.policy,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cross-origin-opener-policy": "same-origin",
            "cache-control": "no-cache",  # ask each time; a 304 is cheap
            "etag": self.etag,
        }
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(self.data, headers={**headers, "content-type": self.kind})


def page_files() -> dict[str, StaticFile]:
    """Path -> file of the chat page; its index.html is /."""
    table: dict[str, StaticFile] = {}
    _walk(files("fathom.server") / "page", "/", table)
    if "/index.html" in table:
        table["/"] = table["/index.html"]
    return table


def docs_files() -> dict[str, StaticFile]:
    """Path -> file of the API reference; empty if the package with Swagger UI is not there."""
    try:
        folder = files("fastapi_offline") / "static"
    except ModuleNotFoundError:
        return {}
    table = {f"/docs/{name}": _read(folder / name, DOCS_POLICY) for name in DOCS_FILES}
    table["/docs"] = StaticFile(DOCS_PAGE.encode(), TYPES[".html"], DOCS_POLICY)
    table["/docs/start.js"] = StaticFile(DOCS_START.encode(), TYPES[".js"], DOCS_POLICY)
    return table


def routes(table: dict[str, StaticFile]) -> list[Route]:
    return [Route(path, file.__call__, methods=["GET"], include_in_schema=False) for path, file in table.items()]


def _walk(folder: Traversable, prefix: str, table: dict[str, StaticFile]) -> None:
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if entry.name.startswith((".", "_")):
            continue
        if entry.is_dir():
            _walk(entry, f"{prefix}{entry.name}/", table)
        elif not entry.name.endswith((".py", ".pyc", ".md")):
            table[prefix + entry.name] = _read(entry, PAGE_POLICY)


def _read(file: Traversable, policy: str) -> StaticFile:
    data = file.read_bytes()
    assert len(data) <= MAX_FILE_BYTES, file.name
    ending = "." + file.name.rpartition(".")[2]
    kind = TYPES.get(ending) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return StaticFile(data, kind, policy)
