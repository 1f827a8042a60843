"""Every bound on what a client may send, in one place. Beyond one of them a request is refused with both numbers.

The engine has bounds of its own (context, queue); these keep a request from costing much before it gets there.
"""

from __future__ import annotations

MAX_BODY_BYTES = 8 * 2**20  # 128k tokens of text are about 0.6 MB
MAX_FIELDS = 256  # of the body's own object; a request has about 40
MAX_JSON_DEPTH = 64  # nested objects and lists; a JSON schema of a real tool stays below 20
BODY_SECONDS = 30.0  # without a new piece of the body the request is given up
WHOLE_BODY_SECONDS = 300.0  # however steadily it drips
MAX_MESSAGES = 2048
MAX_TOOLS = 128
MAX_SCHEMA_CHARS = 64 * 1024  # one JSON schema, pattern or Lark grammar
MAX_TOOLS_CHARS = 256 * 1024  # all tool definitions of a request
MAX_PROMPTS = 64  # prompts in one /v1/completions request
MAX_SAMPLES = 128  # prompts times n
MAX_N = 32
MAX_STOPS = 16  # OpenAI allows 4
MAX_STOP_CHARS = 1000
MAX_LOGIT_BIAS = 1024
MAX_TOP_LOGPROBS = 20
MAX_METADATA = 16
MAX_PRIORITY = 1000
CHARS_PER_TOKEN = 64  # a prompt longer than this many characters per token of context is not even tokenized
