"""A process that serves a fake engine: `python serve_fake.py DRAIN_SECONDS PAUSE`. Prints its port when ready."""

import sys

from fake_service import FakeService

from fathom.server.app import create_app
from fathom.server.serving import bind, serve
from fathom.server.settings import Settings

if __name__ == "__main__":
    fake = FakeService()
    fake.script, fake.pause = "fish " * 40, float(sys.argv[2])
    settings = Settings(drain_seconds=float(sys.argv[1]), quiet=True)
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    sys.exit(serve(create_app(fake, settings), settings, listener, on_ready=lambda: print(port, flush=True)))
