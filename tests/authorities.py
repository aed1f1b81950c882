"""An authority that dates statements and answers by HTTP."""

import contextlib

from tests.servers import served


@contextlib.contextmanager
def authority(signer, folder):
    """The address of an authority that answers by HTTP."""
    # Here: pytest looks for doctests in this module too where the extra `evidence` is not installed.
    from benchmarks.authorities import time_stamp

    def handle(handler, body):
        reply = time_stamp(body, signer, folder)
        handler.send_response(200)
        handler.send_header("Content-Type", "application/timestamp-reply")
        handler.send_header("Content-Length", str(len(reply)))
        handler.end_headers()
        handler.wfile.write(reply)

    with served(handle) as url:
        yield url
