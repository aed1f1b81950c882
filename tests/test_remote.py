"""Models behind HTTP: what is sent, what counts as an answer, and what a bad server gets for its pains."""

import json
import socket
import ssl
import time

import numpy as np
import pytest

import deepsigns_tf as ds
from deepsigns_tf.questioning import Questioning
from deepsigns_tf.trigger_verification import RefusalError
from tests.servers import drip, reply, served

httpx = pytest.importorskip("httpx", reason="asking models behind HTTP needs `deepsigns_tf[remote]`")
remote = pytest.importorskip("deepsigns_tf.remote", reason="asking models behind HTTP needs `deepsigns_tf[remote]`")

INPUTS = np.arange(6, dtype=np.float32).reshape(2, 3)
NAMED = {"a": INPUTS, "b": np.array([[1], [2]])}
SERVING = remote.TensorFlowServing("https://host:8501", "digits")


def answering(reply, status=200, **options):
    """A transport that gives the same reply to all; it remembers the requests."""
    requests = []

    def handle(request):
        requests.append(request)
        content = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        return httpx.Response(status, content=content, **options)

    transport = httpx.MockTransport(handle)
    transport.requests = requests
    return transport


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Spares the tests the pauses between attempts; `slept` holds them."""
    slept, wait = [], remote.RemoteModel._wait

    def no_wait(self, state):
        slept.append(wait(self, state))
        return 0.0

    monkeypatch.setattr(remote.RemoteModel, "_wait", no_wait)
    return slept


# Protocols


def test_tensorflow_serving_is_asked_row_by_row():
    transport = answering({"predictions": [[0.1, 0.9], [0.8, 0.2]]})
    model = remote.RemoteModel(SERVING, transport=transport)
    np.testing.assert_array_equal(model(INPUTS), [[0.1, 0.9], [0.8, 0.2]])
    (request,) = transport.requests
    assert str(request.url) == "https://host:8501/v1/models/digits:predict" and request.method == "POST"
    assert json.loads(request.content) == {"instances": [[0, 1, 2], [3, 4, 5]]}


def test_tensorflow_serving_knows_versions_names_and_outputs():
    protocol = remote.TensorFlowServing("https://host/", "digits", version=3, output="scores")
    transport = answering({"predictions": [{"scores": [1.0], "other": 0}, {"scores": [2.0], "other": 0}]})
    np.testing.assert_array_equal(remote.RemoteModel(protocol, transport=transport)(NAMED), [[1.0], [2.0]])
    (request,) = transport.requests
    assert request.url.path == "/v1/models/digits/versions/3:predict"
    assert json.loads(request.content) == {"instances": [{"a": [0, 1, 2], "b": [1]}, {"a": [3, 4, 5], "b": [2]}]}


def test_open_inference_is_asked_in_tensors():
    reply = {
        "model_name": "digits",
        "outputs": [{"name": "y", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}],
    }
    transport = answering(reply)
    model = remote.RemoteModel(remote.OpenInference("https://host", "digits"), transport=transport)
    np.testing.assert_array_equal(model(INPUTS), [[1, 2], [3, 4]])
    (request,) = transport.requests
    assert request.url.path == "/v2/models/digits/infer"
    tensor = {"name": "input", "shape": [2, 3], "datatype": "FP32", "data": [0, 1, 2, 3, 4, 5]}
    assert json.loads(request.content) == {"inputs": [tensor]}


def test_open_inference_knows_versions_names_and_outputs():
    tensors = [
        {"name": name, "shape": [2], "datatype": "INT64", "data": data} for name, data in (("x", [0, 0]), ("y", [4, 5]))
    ]
    transport = answering({"outputs": tensors})
    protocol = remote.OpenInference("https://host", "digits", version="7", output="y")
    assert remote.RemoteModel(protocol, transport=transport)(NAMED).tolist() == [4, 5]
    body = json.loads(transport.requests[0].content)
    assert transport.requests[0].url.path == "/v2/models/digits/versions/7/infer"
    assert [(each["name"], each["datatype"], each["shape"]) for each in body["inputs"]] == [
        ("a", "FP32", [2, 3]),
        ("b", "INT64", [2, 1]),
    ]
    assert body["outputs"] == [{"name": "y"}]
    several = remote.RemoteModel(remote.OpenInference("https://host", "digits"), transport=transport)
    with pytest.raises(remote.RemoteError, match=r"a reply without predictions \(ValueError\)"):
        several(INPUTS)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float16", "float64", "bool"])
def test_open_inference_names_the_type_of_the_inputs(dtype):
    (tensor,) = remote.OpenInference("https://host", "m").request(np.zeros((1, 2), dtype))["inputs"]
    names = {"uint8": "UINT8", "int32": "INT32", "float16": "FP16", "float64": "FP64", "bool": "BOOL"}
    assert tensor["datatype"] == names[dtype]


def test_any_json_endpoint_is_asked_by_a_mapping():
    transport = answering({"result": [{"labels": [7, 8]}]})
    protocol = remote.JsonEndpoint("https://host/classify?size=3", "data.images", "result.0.labels")
    model = remote.RemoteModel(protocol, transport=transport)
    assert model(INPUTS).tolist() == [7, 8]
    assert json.loads(transport.requests[0].content) == {"data": {"images": [[0, 1, 2], [3, 4, 5]]}}
    assert str(transport.requests[0].url) == "https://host/classify?size=3"
    model(NAMED)
    assert json.loads(transport.requests[1].content)["data"]["images"]["b"] == [[1], [2]]


@pytest.mark.parametrize(
    ("reply", "predictions_at"),
    [
        ([7, 8], ""),
        ([{"label": 7}, {"label": 8}], "label"),
        ({"rows": [{"best": {"label": 7}}, {"best": {"label": 8}}]}, "rows.best.label"),
        ([[7, 8], "seconds"], "0"),
    ],
)
def test_replies_of_other_forms_are_read_by_a_mapping(reply, predictions_at):
    transport = answering(reply)
    protocol = remote.JsonEndpoint("https://host", "x", predictions_at, fields={"model": "digits"})
    assert remote.RemoteModel(protocol, transport=transport)(INPUTS).tolist() == [7, 8]
    assert json.loads(transport.requests[0].content) == {"model": "digits", "x": [[0, 1, 2], [3, 4, 5]]}


def test_fields_leave_the_inputs_their_place():
    with pytest.raises(ValueError, match=r"two things at one place\. Expected .* Received: 'data' in fields"):
        remote.JsonEndpoint("https://host", "data.images", fields={"data": {}})


# What is no answer


@pytest.mark.parametrize(
    ("reply", "account"),
    [
        ({"predictions": [[1.0]]}, r"predictions of shape \(1, 1\), dtype float64 for 2 inputs"),
        ({"predictions": [[1.0], [1.0], [1.0]]}, "predictions of shape"),
        ({"predictions": 3}, r"predictions of shape \(\), dtype int64 for 2 inputs"),
        ({"predictions": ["cat", "dog"]}, "predictions of shape"),
        ({"predictions": [[1.0, 2.0], [1.0]]}, r"a reply without predictions \(ValueError\)"),
        ({"predictions": None}, "predictions of shape"),
        ({"error": "no such model"}, r"a reply without predictions \(KeyError\)"),
        ([], r"a reply without predictions \(TypeError\)"),
        (b'{"predictions": [NaN, 1.0]}', "1 predictions that are not finite"),
        (b'{"predictions": [1e999, -1e999]}', "2 predictions that are not finite"),
        (b"<html>log in</html>", r"a reply that is not JSON \(JSONDecodeError\), 5 times"),
        (b'{"predictions": [[0.1', r"a reply that is not JSON \(JSONDecodeError\), 5 times"),
        (b"", r"a reply that is not JSON \(JSONDecodeError\), 5 times"),
        (b"\xff\xfe", "a reply that is not JSON"),
        (b"[" * 100_000, r"a reply that is not JSON \(RecursionError\), 5 times"),
    ],
)
def test_a_bad_reply_is_never_an_answer(reply, account):
    model = remote.RemoteModel(SERVING, transport=answering(reply))
    with pytest.raises(remote.RemoteError) as error:
        model(INPUTS)
    assert str(error.value).startswith(
        "The model gave no answer that can be used. Expected a prediction for each input. Received: "
    )
    assert str(error.value).endswith(" from https://host:8501/v1/models/digits:predict")
    with pytest.raises(remote.RemoteError, match=account):
        model(INPUTS)


@pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 403, 404, 413, 204])
def test_a_status_that_will_not_change_ends_at_once(status):
    transport = answering({"predictions": [1, 2]}, status, headers={"Location": "https://elsewhere/"})
    with pytest.raises(remote.RemoteError, match=f"Received: status {status} from "):
        remote.RemoteModel(SERVING, transport=transport)(INPUTS)
    assert [request.url.host for request in transport.requests] == ["host"]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_status_that_may_pass_is_asked_again(status, no_pauses):
    replies = iter([httpx.Response(status), httpx.Response(status), httpx.Response(200, json={"predictions": [1, 2]})])
    model = remote.RemoteModel(SERVING, transport=httpx.MockTransport(lambda request: next(replies)))
    assert model(INPUTS).tolist() == [1, 2]
    assert len(no_pauses) == 2 and 0.5 <= no_pauses[0] <= 1.0 <= no_pauses[1] <= 1.5


def test_attempts_are_bounded_and_counted():
    transport = answering(b"", 503)
    with pytest.raises(remote.RemoteError, match="Received: status 503, 3 times from "):
        remote.RemoteModel(SERVING, max_attempts=3, transport=transport)(INPUTS)
    assert len(transport.requests) == 3


@pytest.mark.parametrize(
    ("header", "low", "high"), [("7", 7, 7), ("100000", 60, 60), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.5, 1)]
)
def test_a_server_may_ask_for_a_pause_but_not_for_ever(header, low, high, no_pauses):
    replies = iter(
        [httpx.Response(429, headers={"Retry-After": header}), httpx.Response(200, json={"predictions": [1, 2]})]
    )
    remote.RemoteModel(SERVING, transport=httpx.MockTransport(lambda request: next(replies)))(INPUTS)
    assert low <= no_pauses[0] <= high


def test_a_reply_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr(remote, "_MAX_REPLY_BYTES", 1000)
    with pytest.raises(remote.RemoteError, match="a reply of more than 1000 bytes"):
        remote.RemoteModel(SERVING, transport=answering(b" " * 2000))(INPUTS)


# Real sockets


def asked(handle, **options):
    """What a real server's model answers."""
    with served(handle) as url:
        return remote.RemoteModel(remote.TensorFlowServing(url, "m"), **options)(INPUTS)


def test_a_real_server_is_asked():
    def handle(handler, body):
        rows = json.loads(body)["instances"]
        reply(handler, json.dumps({"predictions": [sum(row) for row in rows]}).encode())

    assert asked(handle).tolist() == [3, 12]


def test_a_truncated_reply_is_asked_for_again():
    calls = []

    def handle(handler, body):
        calls.append(body)
        content = b'{"predictions": [1, 2]}'
        reply(handler, content, len(content) + (100 if len(calls) == 1 else 0))
        handler.close_connection = True

    assert asked(handle, timeout=2.0).tolist() == [1, 2] and len(calls) == 2


def test_a_stalling_server_is_given_up():
    with pytest.raises(remote.RemoteError, match=r"no reply \(ReadTimeout\), 2 times"):
        asked(lambda handler, body: time.sleep(1.0), timeout=0.1, max_attempts=2)


def test_a_server_that_drips_is_given_up():
    with pytest.raises(remote.RemoteError, match=r"a reply that took more than 0\.2 s, 1 times"):
        asked(drip, deadline=0.2, max_attempts=1)


def test_headers_that_drip_are_given_up():
    def handle(handler, body):
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n":
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(0.05)

    begin = time.monotonic()
    with pytest.raises(remote.RemoteError, match=r"a reply that took more than 0\.2 s, 1 times"):
        asked(handle, deadline=0.2, max_attempts=1)
    assert time.monotonic() - begin < 1.5


def test_compressed_replies_are_neither_asked_for_nor_taken():
    def handle(handler, body):
        assert handler.headers["Accept-Encoding"] == "identity"
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip, gzip")
        handler.send_header("Content-Length", "3")
        handler.end_headers()
        handler.wfile.write(b"abc")

    with pytest.raises(remote.RemoteError, match="a compressed reply, which was not asked for"):
        asked(handle)


def test_a_server_whose_certificate_nobody_trusts_gets_no_question(no_pauses):
    trustme = pytest.importorskip(
        "trustme", reason="certificates for a test are made in the environment of requirements.txt"
    )
    authority, bodies = trustme.CA(), []

    def handle(handler, body):
        bodies.append(body)
        reply(handler, b'{"predictions": [0, 0]}')

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with served(handle, context) as url:
        protocol = remote.TensorFlowServing(url, "m")
        with pytest.raises(
            remote.RemoteError, match="Received: a certificate that cannot be verified from https://127"
        ):
            remote.RemoteModel(protocol)(INPUTS)
        assert not bodies and not no_pauses
        trusted = ssl.create_default_context()
        authority.configure_trust(trusted)
        assert remote.RemoteModel(protocol, verify=trusted)(INPUTS).tolist() == [0, 0]


def test_a_proxy_does_not_see_what_is_meant_for_this_machine(monkeypatch):
    seen = []

    def proxy(handler, body):
        seen.append(handler.path)
        reply(handler, b"{}")

    with served(proxy) as address, served(lambda handler, body: reply(handler, b'{"predictions": [0, 0]}')) as url:
        monkeypatch.setenv("HTTP_PROXY", address)
        assert remote.RemoteModel(remote.TensorFlowServing(url, "m"))(INPUTS).tolist() == [0, 0]
    assert not seen


def test_a_refusal_is_told_from_a_failure():
    transport = answering({"error": "not for me"}, status=422)
    with pytest.raises(RefusalError):
        remote.RemoteModel(SERVING, transport=transport, refused_statuses=(400, 422))(INPUTS)
    with pytest.raises(remote.RemoteError, match="status 422"):
        remote.RemoteModel(SERVING, transport=transport)(INPUTS)
    assert len(transport.requests) == 2


@pytest.mark.parametrize(
    "url", ["me:pass@host/m?key=s3cret", "http://host:port/m", "host:8501", "ftp://host/m", "https://", ""]
)
def test_an_address_that_is_none_is_refused_and_not_shown(url):
    with pytest.raises(
        ValueError, match=r"^This is no address of a model\. Expected .*\. Received: \d+ characters"
    ) as error:
        remote.RemoteModel(remote.JsonEndpoint(url))
    assert not any(word in str(error.value) for word in ("pass", "s3cret"))


def test_a_server_that_dies_keeps_what_it_answered(tmp_path):
    key = ds.OwnerKey("ACME Vision", (), ds.DecisionRule(), bytes(32)).with_triggers("noise", 30, 10, INPUTS)
    calls = []

    def handle(handler, body):
        calls.append(body)
        if len(calls) > 5:
            # Closed alone it would stay open for the handler's files, and the client wait for its time-out.
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        reply(handler, json.dumps({"predictions": [0] * len(json.loads(body)["instances"])}).encode())

    path = tmp_path / "answers.json"
    with served(handle) as url:
        model = remote.RemoteModel(remote.TensorFlowServing(url, "m"), max_attempts=2)
        with pytest.raises(remote.RemoteError, match="no reply"):
            Questioning(key, path, "model A").run(model, batch_size=2)
    assert Questioning(key, path, "model A").num_queries == 10
    with pytest.raises(remote.RemoteError, match=r"no reply \(ConnectError\)"):
        Questioning(key, path, "model A").run(model)
    assert Questioning(key, path, "model A").num_queries == 10


def test_requests_are_spaced():
    model = remote.RemoteModel(SERVING, max_requests_per_second=20, transport=answering({"predictions": [1, 2]}))
    begin = time.monotonic()
    for _ in range(4):
        model(INPUTS)
    assert time.monotonic() - begin >= 3 / 20


# Secrets


def test_a_token_comes_from_the_environment_and_is_shown_nowhere(monkeypatch):
    monkeypatch.setenv("MODEL_TOKEN", "s3cret")
    transport = answering(b"", 403)
    model = remote.RemoteModel(SERVING, token_variable="MODEL_TOKEN", transport=transport)
    with pytest.raises(remote.RemoteError) as error:
        model(INPUTS)
    assert transport.requests[0].headers["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in str(error.value) and "s3cret" not in repr(model)


@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_token_is_told_before_anything_is_asked(value, monkeypatch):
    monkeypatch.delenv("MODEL_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("MODEL_TOKEN", value)
    with pytest.raises(ValueError, match="The token cannot be sent. .* Received: MODEL_TOKEN not set"):
        remote.RemoteModel(SERVING, token_variable="MODEL_TOKEN")


def test_a_token_is_not_sent_in_the_clear(monkeypatch):
    monkeypatch.setenv("MODEL_TOKEN", "s3cret")
    with pytest.raises(
        ValueError, match=r"an address that begins with https://\. Received: MODEL_TOKEN set, an address with http://"
    ):
        remote.RemoteModel(remote.TensorFlowServing("http://host", "m"), token_variable="MODEL_TOKEN")
    # On this machine nobody listens.
    remote.RemoteModel(remote.TensorFlowServing("http://127.0.0.1:1", "m"), token_variable="MODEL_TOKEN")


@pytest.mark.parametrize("token", ["s3\N{LATIN SMALL LETTER SHARP S}cret", "s3 cret", "s3\ncret"])
def test_a_token_that_no_header_takes_is_refused_unseen(token, monkeypatch):
    monkeypatch.setenv("MODEL_TOKEN", token)
    with pytest.raises(ValueError, match="Received: MODEL_TOKEN set to something else") as error:
        remote.RemoteModel(SERVING, token_variable="MODEL_TOKEN")
    assert "s3" not in str(error.value)


@pytest.mark.parametrize("url", ["http://me:s3cret@localhost:1/m", "https://me@host/m"])
def test_addresses_with_a_password_are_refused_unseen(url):
    with pytest.raises(ValueError, match="This address holds a user's name or password") as error:
        remote.RemoteModel(remote.JsonEndpoint(url))
    assert "s3cret" not in str(error.value)


def test_errors_do_not_show_what_an_address_may_hide():
    model = remote.RemoteModel(remote.JsonEndpoint("https://host/m?key=s3cret"), transport=answering(b"", 403))
    with pytest.raises(remote.RemoteError) as error:
        model(INPUTS)
    assert str(error.value).endswith("from https://host/m")


@pytest.mark.parametrize(
    "limits", [{"timeout": 0}, {"deadline": -1}, {"max_attempts": 0}, {"max_requests_per_second": -2.0}]
)
def test_limits_out_of_range_are_refused(limits):
    with pytest.raises(ValueError, match="These limits of a request are out of range"):
        remote.RemoteModel(SERVING, **limits)
