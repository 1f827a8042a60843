"""The API server: the OpenAI requests over HTTP, and the chat page. `app.create_app` builds it."""
