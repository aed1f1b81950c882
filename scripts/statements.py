"""What `commit.py` and `release.py` share: a statement's hash, and its way to a time-stamp."""

import pathlib
from typing import Any

import httpx

from deepsigns_tf.commitments import Statement
from deepsigns_tf.evidence import add_time_stamp, statement_file
from deepsigns_tf.files import write_atomically
from deepsigns_tf.remote import UnfitReplyError, exchanged
from deepsigns_tf.timestamps import time_stamp_request
from scripts.claims import roots_in

_MAX_REPLY_BYTES = 2**18


def stamp(config: Any, statement: Statement) -> None:
    """Prints a statement's hash, and gets it time-stamped or leaves the request for it.

    Args:
        config: Has `evidence`, `tsa_url`, `tsa_roots`, `reply` and `timeout`.
        statement: Stands in the folder already.

    Raises:
        ValueError: If the time-stamp is refused, or the authority gives none.
        OSError: If a file cannot be read or written.
    """
    print(f"Statement {statement.number}, SHA-256 to publish or time-stamp: {statement.digest()}", flush=True)
    path = statement_file(config.evidence, statement.number)
    data, request_file = path.read_bytes(), path.with_suffix(".tsq")
    request = time_stamp_request(data)
    if path.with_suffix(".tsr").exists() and not config.reply:
        print(f"Its time-stamp is there already: {path.with_suffix('.tsr')}")
        return
    if not config.reply and not config.tsa_url:
        write_atomically(request_file, request)
        print(f"Request for a time-stamp, to send to an authority; then give its answer with --reply: {request_file}")
        return
    given = pathlib.Path(config.reply).read_bytes() if config.reply else None
    reply = _asked(config.tsa_url, request, config.timeout) if given is None else given
    time_stamp = add_time_stamp(config.evidence, statement.number, reply, roots_in(config.tsa_roots))
    request_file.unlink(missing_ok=True)
    print(
        f"Time-stamped {time_stamp.time:%Y-%m-%d %H:%M:%S} UTC by {time_stamp.authority}, serial number {time_stamp.serial_number}"
        + ("" if config.tsa_roots else "; nobody checked who that is, for want of --tsa_roots")
    )


def _asked(url: str, request: bytes, timeout: float) -> bytes:
    """An authority's reply."""
    headers = {"Content-Type": "application/timestamp-query", "Accept": "application/timestamp-reply"}
    settings = {"headers": headers, "timeout": timeout}
    try:
        return exchanged(url, {"content": request}, timeout, _MAX_REPLY_BYTES, _check_status, settings)
    except TimeoutError:
        received = f"no whole reply within {timeout:g} s"
    except UnfitReplyError as error:
        received = str(error)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        received = f"{type(error).__name__}: {error}"
    raise ValueError(
        f"The authority gave no time-stamp; the statement stands, and the same command asks again. Expected a reply from {url}. "
        f"Received: {received}"
    )


def _check_status(response: httpx.Response) -> None:
    if response.status_code != 200:
        raise UnfitReplyError(f"status {response.status_code}")
