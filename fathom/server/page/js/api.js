// Talking to the server: models, and one streamed chat completion as an async generator of events.
// Everything that can go wrong becomes an ApiError whose `kind` decides what the page offers to do about it.

export class ApiError extends Error {
  /** kind: key | busy | request | network | server ; retryAfter: seconds, for busy */
  constructor(kind, title, message, retryAfter = null) {
    super(message);
    this.kind = kind;
    this.title = title;
    this.retryAfter = retryAfter;
  }
}

const NETWORK = "The connection to the server was lost. Is it still running?";

export class Api {
  constructor(keys) {
    this.keys = keys; // {get(): string}
  }

  async fetch(path, options = {}) {
    const key = this.keys.get();
    const headers = { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("network", "No connection", NETWORK);
    }
    if (!response.ok) throw await errorFrom(response);
    return response;
  }

  /** The first model of /v1/models; its `fathom` part says what the page can offer. */
  async model() {
    const body = await (await this.fetch("v1/models")).json();
    const model = body?.data?.[0];
    if (!model) throw new ApiError("server", "No model", "The server lists no model.");
    return { id: model.id, ...(model.fathom ?? {}) };
  }

  /**
   * Streams a completion. Yields {content}, {reasoning}, {tokens}, {finish}, {usage}.
   * Throws ApiError, or AbortError when `signal` was raised.
   */
  async *stream(body, signal) {
    const request = { ...body, stream: true, stream_options: { include_usage: true } };
    const response = await this.fetch("v1/chat/completions", { method: "POST", body: JSON.stringify(request), signal });
    let ended = false;
    try {
      for await (const data of serverSentEvents(response.body)) {
        if (data === "[DONE]") {
          ended = true;
          break;
        }
        const chunk = parse(data);
        if (chunk.error) throw streamError(chunk.error);
        yield* eventsOf(chunk);
      }
    } catch (error) {
      if (error instanceof ApiError || error.name === "AbortError") throw error;
      throw new ApiError("network", "Connection lost", "The connection broke before the answer was complete.");
    }
    if (!ended)
      throw new ApiError(
        "network",
        "Connection lost",
        "The server closed the connection before the answer was complete.",
      );
  }
}

function parse(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ApiError(
      "server",
      "Unreadable answer",
      `The server sent a chunk that is not JSON: ${data.slice(0, 200)}`,
    );
  }
}

function streamError(error) {
  return new ApiError(
    "server",
    "The server stopped",
    String(error.message ?? "It reported an error in the middle of the answer."),
  );
}

function* eventsOf(chunk) {
  const choice = chunk.choices?.[0];
  if (choice) {
    // tokens first: whoever draws them finds them there when the text arrives
    if (choice.fathom?.tokens) yield { tokens: choice.fathom.tokens };
    const delta = choice.delta ?? {};
    if (delta.reasoning_content) yield { reasoning: delta.reasoning_content };
    if (delta.content) yield { content: delta.content };
    if (choice.finish_reason) yield { finish: choice.finish_reason };
  }
  if (chunk.usage) yield { usage: chunk.usage };
}

/** The data of each server-sent event. Comments (keep-alives) are dropped. Events are cut anywhere by the network. */
export async function* serverSentEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      buffer += done ? "\n\n" : value;
      const events = buffer.split(/\r?\n\r?\n/);
      buffer = events.pop();
      for (const event of events) {
        const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
      if (done) return;
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

async function errorFrom(response) {
  const text = await response.text().catch(() => "");
  let detail = null;
  try {
    detail = JSON.parse(text).error ?? null;
  } catch {
    // a proxy's HTML page, or nothing
  }
  const message = detail?.message ?? (text.length < 300 && !text.includes("<") ? text : "");
  const status = response.status;
  if (status === 401) return new ApiError("key", "An API key is needed", message || "The server refused the key.");
  if (status === 429 || status === 503) {
    const seconds = Number.parseFloat(response.headers.get("retry-after"));
    const wait = Number.isFinite(seconds) ? Math.max(0, Math.ceil(seconds)) : null;
    const title = status === 429 ? "The server is busy" : "The server is not taking requests";
    return new ApiError("busy", title, message || "Too many requests are waiting.", wait);
  }
  const full = status === 413 || detail?.code === "context_length_exceeded";
  if (full) return new ApiError("request", "It does not fit", message || "The request is too large for this server.");
  if (status >= 400 && status < 500)
    return new ApiError("request", "The server refused the request", message || `HTTP ${status}`);
  return new ApiError("server", "The server failed", message || `HTTP ${status}`);
}
