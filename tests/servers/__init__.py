"""Servers on this machine for the tests: any handler, JSON answers, and a stand-in for TensorFlow Serving."""

import contextlib
import http.server
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def served(
    handle: Callable[[http.server.BaseHTTPRequestHandler, bytes], None], context: ssl.SSLContext | None = None
) -> Iterator[str]:
    """The address of a server that hands each request and its body to `handle`; with a context, by HTTPS."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):
                super().handle()

        def do_POST(self) -> None:  # noqa: N802
            handle(self, self.rfile.read(int(self.headers["Content-Length"])))

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if context is not None:
        # Hands are shaken in the thread of each request.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http{'s' if context else ''}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def reply(
    handler: http.server.BaseHTTPRequestHandler, content: bytes, length: int | None = None, status: int = 200
) -> None:
    """Sends a reply; `length` is what its header claims, the truth by default."""
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(content) if length is None else length))
    handler.end_headers()
    handler.wfile.write(content)


def drip(handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
    """Answers with parts that are all in time, and a reply that never is."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(60):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


@contextlib.contextmanager
def json_served(answer: Callable[[str, Any], tuple[int, Any]]) -> Iterator[str]:
    """The address of a server whose `answer` takes path and body of a request and gives status and body of the reply."""

    def handle(handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        status, content = answer(handler.path, json.loads(body))
        reply(handler, json.dumps(content).encode(), status=status)

    with served(handle) as url:
        yield url
