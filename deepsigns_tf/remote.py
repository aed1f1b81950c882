"""Models behind HTTP, asked by the protocols of their servers; needs `httpx` and `tenacity` (`pip install "deepsigns_tf[remote]"`).

A model here is a function from inputs to predictions, as `Questioning` and `verify_predict_fn` want one. What a server sends is taken for
an answer only if it is whole, well-formed, and as long as the question.
"""

import dataclasses
import json
import os
import ssl
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import anyio
import anyio.from_thread
import httpx
import numpy as np
import tenacity

from deepsigns_tf.activations import Inputs
from deepsigns_tf.trigger_verification import RefusalError

_RETRIED = {429, 500, 502, 503, 504}
_MAX_REPLY_BYTES = 64 * 2**20
_MAX_WAIT = 60.0
_LOCAL = {"localhost", "127.0.0.1", "::1"}
_DATATYPES = {"f2": "FP16", "f4": "FP32", "f8": "FP64", "b1": "BOOL"} | {
    f"{kind}{size}": f"{name}{8 * size}" for kind, name in (("i", "INT"), ("u", "UINT")) for size in (1, 2, 4, 8)
}


class RemoteError(Exception):
    """A server gave no answer that can be used; the text says what it did instead."""


class ServerProtocol(Protocol):
    """How a kind of server is asked."""

    @property
    def address(self) -> str:
        """Where requests go."""

    def request(self, inputs: Inputs) -> dict[str, Any]:
        """The JSON body that asks for predictions of inputs."""

    def predictions(self, reply: Any) -> Any:
        """The predictions in a JSON reply; `KeyError`, `IndexError`, `TypeError` or `ValueError` if it holds none."""


@dataclasses.dataclass(frozen=True)
class TensorFlowServing:
    """TensorFlow Serving's REST predict interface, row by row.

    Args:
        url: Of the server, as `http://host:8501`.
        model: Name of the model.
        version: Of the model; the server's choice by default.
        output: Name of the output, where there are several.

    Example:

    >>> TensorFlowServing("http://localhost:8501", "digits").address
    'http://localhost:8501/v1/models/digits:predict'

    Source: https://www.tensorflow.org/tfx/serving/api_rest, "Predict API".
    """

    url: str
    model: str
    version: int | None = None
    output: str | None = None

    @property
    def address(self) -> str:
        """Where requests go."""
        version = "" if self.version is None else f"/versions/{self.version}"
        return f"{self.url.rstrip('/')}/v1/models/{self.model}{version}:predict"

    def request(self, inputs: Inputs) -> dict[str, Any]:
        """The JSON body that asks for predictions of inputs."""
        if not isinstance(inputs, Mapping):
            return {"instances": inputs.tolist()}
        columns = {name: array.tolist() for name, array in inputs.items()}
        rows = zip(*columns.values(), strict=True)
        return {"instances": [dict(zip(columns, row, strict=True)) for row in rows]}

    def predictions(self, reply: Any) -> Any:
        """The predictions in a JSON reply."""
        rows = reply["predictions"]
        return rows if self.output is None else [row[self.output] for row in rows]


@dataclasses.dataclass(frozen=True)
class OpenInference:
    """Version 2 of the Open Inference Protocol: KServe, MLServer, Triton, OpenVINO and others.

    Args:
        url: Of the server, as `http://host:8080`.
        model: Name of the model.
        version: Of the model; the server's choice by default.
        input_name: Name of the input tensor; inputs that are a dict bring their own names.
        output: Name of the output tensor; the only one by default.

    Example:

    >>> protocol = OpenInference("http://localhost:8080", "digits")
    >>> protocol.request(np.zeros((1, 2), "float32"))["inputs"]
    [{'name': 'input', 'shape': [1, 2], 'datatype': 'FP32', 'data': [0.0, 0.0]}]

    Source: https://github.com/kserve/open-inference-protocol, "HTTP/REST", "Inference".
    """

    url: str
    model: str
    version: str | None = None
    input_name: str = "input"
    output: str | None = None

    @property
    def address(self) -> str:
        """Where requests go."""
        version = "" if self.version is None else f"/versions/{self.version}"
        return f"{self.url.rstrip('/')}/v2/models/{self.model}{version}/infer"

    def request(self, inputs: Inputs) -> dict[str, Any]:
        """The JSON body that asks for predictions of inputs."""
        arrays = inputs if isinstance(inputs, Mapping) else {self.input_name: inputs}
        tensors = [
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": _DATATYPES[array.dtype.str[1:]],
                "data": array.ravel().tolist(),
            }
            for name, array in arrays.items()
        ]
        return {"inputs": tensors} | ({"outputs": [{"name": self.output}]} if self.output else {})

    def predictions(self, reply: Any) -> Any:
        """The predictions in a JSON reply."""
        outputs = [each for each in reply["outputs"] if self.output in (None, each["name"])]
        if len(outputs) != 1:
            raise ValueError(f"{len(outputs)} outputs")
        return np.array(outputs[0]["data"]).reshape(outputs[0]["shape"])


@dataclasses.dataclass(frozen=True)
class JsonEndpoint:
    """Any address that takes a JSON object with rows of inputs and gives one with rows of predictions.

    Args:
        url: Where requests go, whole.
        inputs: Where the inputs stand in a request: names on the way, separated by dots.
        predictions_at: Where the predictions stand in a reply: names on the way, separated by dots; numbers count into lists, and a name
            goes into each object of a list. Empty: the reply itself.
        fields: What else every request holds.

    Raises:
        ValueError: If `fields` holds something at the inputs' place.

    Example:

    >>> endpoint = JsonEndpoint("https://example.org/classify", "data.images", "rows.label", fields={"model": "digits"})
    >>> endpoint.request(np.zeros((1, 2)))
    {'model': 'digits', 'data': {'images': [[0.0, 0.0]]}}
    >>> endpoint.predictions({"rows": [{"label": 3}, {"label": 7}]})
    [3, 7]
    """

    url: str
    inputs: str = "inputs"
    predictions_at: str = "predictions"
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        first = self.inputs.partition(".")[0]
        if first in self.fields:
            raise ValueError(
                "A request cannot hold two things at one place. Expected fields beside the inputs. "
                f"Received: {first!r} in fields, inputs={self.inputs!r}"
            )

    @property
    def address(self) -> str:
        """Where requests go."""
        return self.url

    def request(self, inputs: Inputs) -> dict[str, Any]:
        """The JSON body that asks for predictions of inputs."""
        arrays = inputs if isinstance(inputs, Mapping) else {"": inputs}
        rows = {name: array.tolist() for name, array in arrays.items()}
        body: Any = rows if isinstance(inputs, Mapping) else rows[""]
        for name in reversed(self.inputs.split(".")):
            body = {name: body}
        return {**self.fields, **body}

    def predictions(self, reply: Any) -> Any:
        """The predictions in a JSON reply."""
        for name in filter(None, self.predictions_at.split(".")):
            if not isinstance(reply, list):
                reply = reply[name]
            elif name.isdecimal():
                reply = reply[int(name)]
            else:
                reply = [each[name] for each in reply]
        return reply


class UnfitReplyError(Exception):
    """A reply that is not read, or not to its end; the text says what it is."""


def exchanged(
    url: str,
    body: Mapping[str, Any],
    deadline: float,
    max_bytes: int,
    look: Callable[[httpx.Response], None],
    settings: Mapping[str, Any],
) -> bytes:
    """Posts a request and reads the whole reply, of a bounded size and in bounded time, however it trickles.

    Args:
        url: Where to.
        body: The request's, as `content` or `json` of `httpx.AsyncClient.stream`.
        deadline: Seconds that all of it may take.
        max_bytes: The most that the reply may hold.
        look: Sees status and headers, and raises where they are not what is wanted.
        settings: Of the `httpx.AsyncClient`.

    Returns:
        The reply's body.

    Raises:
        UnfitReplyError: If the reply is compressed or too large.
        TimeoutError: If it took longer.
        httpx.HTTPError: If there was none.
    """

    async def exchange() -> bytes:
        content = bytearray()
        # A client for each request: none is left open, whatever the server does.
        with anyio.fail_after(deadline):
            async with (
                httpx.AsyncClient(**settings) as client,
                # Nothing small may become large here.
                client.stream("POST", url, headers={"Accept-Encoding": "identity"}, **body) as response,
            ):
                look(response)
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise UnfitReplyError("a compressed reply, which was not asked for")
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > max_bytes:
                        raise UnfitReplyError(f"a reply of more than {max_bytes} bytes")
        return bytes(content)

    # In a thread of its own, whose event loop can end a request that trickles.
    with anyio.from_thread.start_blocking_portal() as portal:
        return portal.call(exchange)


class _PassingError(Exception):
    """What may be better at the next attempt; `wait` is what the server asks for, in seconds."""

    def __init__(self, account: str, wait: float = 0.0) -> None:
        super().__init__(account)
        self.wait = wait


class RemoteModel:
    """A function from inputs to the predictions of a model behind HTTP.

    Certificates are checked, redirects are not followed, and a token comes from the environment alone. A request that fails for a
    reason that may pass (no connection, a time-out, an unfinished reply, status 429, 500, 502, 503 or 504) is repeated, with growing
    pauses.

    Args:
        protocol: How it is asked, and where.
        timeout: Seconds that a connection, or the next part of a reply, may take.
        deadline: Seconds that a whole reply may take.
        max_attempts: Requests for one batch, >= 1.
        max_requests_per_second: Requests are spaced so; None: at once.
        token_variable: Environment variable with a token to send as `Authorization: Bearer`; none by default.
        refused_statuses: HTTP statuses by which this server refuses an input, as 400 or 422; they raise `RefusalError`, which a
            `Questioning` counts as no answer. None by default: they are errors.
        verify: What to check certificates with; by default certifi's roots, or those that SSL_CERT_FILE or SSL_CERT_DIR name.
        transport: Another way to send requests, for tests.

    Raises:
        ValueError: If the address is none or holds a password, a number is out of range, or the token is missing, cannot be sent,
            or would be in the clear.

    Example:

    >>> RemoteModel(TensorFlowServing("http://localhost:8501", "digits")).name
    'http://localhost:8501/v1/models/digits:predict'
    """

    def __init__(
        self,
        protocol: ServerProtocol,
        timeout: float = 10.0,
        deadline: float = 60.0,
        max_attempts: int = 5,
        max_requests_per_second: float | None = None,
        token_variable: str | None = None,
        refused_statuses: Collection[int] = (),
        verify: ssl.SSLContext | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        try:
            address = httpx.URL(protocol.address)
        except httpx.InvalidURL:
            address = httpx.URL("")
        if address.scheme not in ("http", "https") or not address.host:
            # The address is not shown: it may hold a password.
            raise ValueError(
                "This is no address of a model. Expected a URL that begins with https:// or http://, a host and a numeric port. "
                f"Received: {len(protocol.address)} characters that are none"
            )
        if address.userinfo:
            # It would stand in command lines, and be sent in the clear without https.
            raise ValueError(
                "This address holds a user's name or password. Expected a secret in an environment variable, named by `token_variable`. "
                "Received: an address with characters before an @"
            )
        if not (timeout > 0 and deadline > 0 and max_attempts >= 1 and (max_requests_per_second or 1.0) > 0):
            raise ValueError(
                "These limits of a request are out of range. Expected times and rates above 0 and at least one attempt. "
                f"Received: timeout={timeout}, deadline={deadline}, max_attempts={max_attempts}, "
                f"max_requests_per_second={max_requests_per_second}"
            )
        headers = {}
        if token_variable is not None:
            token = os.environ.get(token_variable, "")
            # One word of printable ASCII characters, as a header takes it.
            fit = token.isascii() and token.isprintable() and " " not in token
            if not token or not fit or (address.scheme != "https" and address.host not in _LOCAL):
                raise ValueError(
                    "The token cannot be sent. Expected it in the environment, of printable ASCII characters without spaces, and an "
                    f"address that begins with https://. Received: {token_variable} {'set' if token else 'not set'}"
                    f"{'' if fit else ' to something else'}, an address with {address.scheme}://"
                )
            headers["Authorization"] = f"Bearer {token}"
        self.protocol = protocol
        # Without the query, which may be a secret.
        self.name = f"{address.scheme}://{address.netloc.decode()}{address.path}"
        self._deadline = deadline
        self._spacing = 1.0 / max_requests_per_second if max_requests_per_second else 0.0
        self._next = 0.0
        self._refused = frozenset(refused_statuses)
        self._settings: Any = {
            "headers": headers,
            "timeout": timeout,
            "transport": transport,
            "follow_redirects": False,
            "verify": verify or True,
            # A proxy would see what is meant for this machine.
            "trust_env": address.host not in _LOCAL,
        }
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_PassingError),
            stop=tenacity.stop_after_attempt(max_attempts),
            wait=self._wait,
            reraise=True,
        )

    def __call__(self, inputs: Inputs) -> np.ndarray:
        """Asks once, or until an answer comes.

        Args:
            inputs: Array `(n, ...)`, or dict of arrays.

        Returns:
            `(n, ...)` predictions, whatever they are.

        Raises:
            RemoteError: If no answer came that can be used.
            RefusalError: If the status is one of `refused_statuses`.
        """
        num_examples = len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs)
        body = self.protocol.request(inputs)
        try:
            reply = self._retrying(self._ask, body)
        except _PassingError as error:
            attempts = self._retrying.statistics.get("attempt_number", 1)
            raise self._failed(f"{error}, {attempts} times") from None
        try:
            predictions = np.asarray(self.protocol.predictions(reply))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._failed(f"a reply without predictions ({type(error).__name__})") from None
        if predictions.dtype.kind not in "biuf" or predictions.ndim == 0 or len(predictions) != num_examples:
            raise self._failed(
                f"predictions of shape {predictions.shape}, dtype {predictions.dtype} for {num_examples} inputs"
            )
        if not np.isfinite(predictions).all():
            raise self._failed(f"{np.count_nonzero(~np.isfinite(predictions))} predictions that are not finite")
        return predictions

    def _ask(self, body: dict[str, Any]) -> Any:
        now = time.monotonic()
        if now < self._next:
            time.sleep(self._next - now)
        self._next = max(now, self._next) + self._spacing
        try:
            content = exchanged(
                self.protocol.address, {"json": body}, self._deadline, _MAX_REPLY_BYTES, self._look, self._settings
            )
        except UnfitReplyError as error:
            raise self._failed(str(error)) from None
        except TimeoutError:
            raise _PassingError(f"a reply that took more than {self._deadline:g} s") from None
        except httpx.TransportError as error:
            if _is_about_certificates(error):
                raise self._failed("a certificate that cannot be verified") from None
            raise _PassingError(f"no reply ({type(error).__name__})") from None
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _PassingError(f"a reply that is not JSON ({type(error).__name__})") from None

    def _look(self, response: httpx.Response) -> None:
        if response.status_code in self._refused:
            raise RefusalError(f"status {response.status_code}")
        if response.status_code in _RETRIED:
            raise _PassingError(f"status {response.status_code}", _seconds(response.headers.get("Retry-After", "")))
        if response.status_code != 200:
            # A redirect would hand the questions to somebody else.
            raise self._failed(f"status {response.status_code}")

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked_for = error.wait if isinstance(error, _PassingError) else 0.0
        return min(_MAX_WAIT, max(asked_for, _BACK_OFF(state)))

    def _failed(self, received: str) -> RemoteError:
        return RemoteError(
            "The model gave no answer that can be used. Expected a prediction for each input. "
            f"Received: {received} from {self.name}"
        )


def _is_about_certificates(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


_BACK_OFF = tenacity.wait_exponential_jitter(multiplier=0.5, max=_MAX_WAIT, jitter=0.5)


def _seconds(text: str) -> float:
    """Of a `Retry-After` header; 0 for a date, which would need clocks that agree."""
    return float(text) if text.isdecimal() else 0.0
