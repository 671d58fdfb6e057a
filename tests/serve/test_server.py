"""The server as users start it, asked by clients that others wrote: tritonclient over HTTP, gRPC's own stubs."""

from __future__ import annotations

import base64
import http.client
import json
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.line_receivers import certificate
from tests.serve.running import PATIENCE_S, RunningServer
from tests.tiny_bundles import dark_image, make_bundle, spotted_image, toy_gate
from vae_edge.detector import Detector
from vae_edge.targets import Target

pytest.importorskip("mlserver", reason="MLServer is not installed; `make test-serve` has it")
import grpc
import tritonclient.http as triton
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub
from tritonclient.utils import InferenceServerException

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a token that is none".replace(" ", "-")
NAMES = ("toy-onnx-fp32", "toy-openvino-fp32")
NUMBERS = ("is_anomalous", "score", "p_value", "threshold")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return [make_bundle(folder / f"toy-{target}-fp32", target).folder for target in (Target.ONNX, Target.OPENVINO)]


@pytest.fixture(scope="module")
def server(bundles: list[Path]) -> Iterator[RunningServer]:
    with RunningServer(*bundles, options=("--grpc-port", "0", "--max-request", "1")) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[Any]:
    with triton.InferenceServerClient(server.address) as opened:
        yield opened


def picture(seed: int, size: int = 48) -> Any:
    return (spotted_image if seed % 2 else dark_image)(seed, size)


def png(image: Any) -> bytes:
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done
    return data.tobytes()


def files(*contents: bytes) -> Any:
    given = triton.InferInput("encoded", [len(contents)], "BYTES")
    given.set_data_from_numpy(np.array(contents, dtype=object))
    return given


def pixels(images: Any, *, binary: bool = True) -> Any:
    given = triton.InferInput("image", list(images.shape), "UINT8")
    given.set_data_from_numpy(images, binary_data=binary)
    return given


def get(address: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes, Any]:
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    finally:
        connection.close()


def test_the_server_describes_its_models(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["name"] == "vae-edge"
    for name in NAMES:
        assert client.is_model_ready(name)
        described = client.get_model_metadata(name)
        assert described["platform"] == f"vae-edge-{name.removeprefix('toy-')}"
        assert [each["name"] for each in described["inputs"]] == ["image", "encoded"]
        assert [each["name"] for each in described["outputs"]] == [
            *NUMBERS,
            "verdict",
            "not_inspectable_because",
            "anomaly_map",
        ]


@pytest.mark.parametrize("place", [0, 1])
def test_every_way_to_send_a_picture_gets_the_verdict_of_the_detector(
    client: Any, bundles: list[Path], place: int
) -> None:
    images = np.stack([picture(seed) for seed in range(6)])
    contents = [png(image) for image in images]
    with Detector.open(bundles[place], hint="throughput") as detector:
        expected = [detector.predict(image) for image in images]
    ways = (files(*contents), pixels(images), pixels(images, binary=False))
    for given in ways:
        for binary in (True, False):
            outputs = [
                triton.InferRequestedOutput(name, binary_data=binary) for name in (*NUMBERS, "verdict", "anomaly_map")
            ]
            got = client.infer(NAMES[place], [given], outputs=outputs)
            for name in (*NUMBERS, "anomaly_map"):
                kind = np.bool_ if name == "is_anomalous" else np.float32
                wanted: Any = np.stack([np.asarray(getattr(p, name), dtype=kind) for p in expected])
                assert np.array_equal(got.as_numpy(name), wanted), (name, binary)
            assert [str(v, "utf-8") if binary else v for v in got.as_numpy("verdict")] == [p.verdict for p in expected]
    assert [prediction.is_anomalous for prediction in expected] == [False, True] * 3


def test_the_map_comes_only_when_it_is_asked_for(client: Any) -> None:
    one = pixels(picture(1))
    assert client.infer(NAMES[0], [one]).as_numpy("anomaly_map") is None
    asked = client.infer(NAMES[0], [one], parameters={"anomaly_map": True})
    assert asked.as_numpy("anomaly_map").shape == (1, 32, 32)
    assert asked.as_numpy("is_anomalous").tolist() == [True]


def test_json_alone_is_enough(server: RunningServer) -> None:
    text = base64.b64encode(png(picture(1))).decode()
    request = {"id": "7", "inputs": [{"name": "encoded", "shape": [1], "datatype": "BYTES", "data": [text]}]}
    status, body, _ = get(server.address, "POST", f"/v2/models/{NAMES[0]}/infer", json.dumps(request))
    answer = json.loads(body)
    assert (status, answer["id"], answer["model_name"]) == (200, "7", NAMES[0])
    found = {output["name"]: output["data"] for output in answer["outputs"]}
    assert (found["is_anomalous"], found["verdict"], found["not_inspectable_because"]) == ([True], ["anomalous"], [""])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: files(png(picture(1))[:70]), r"encoded\[0\]"),
        (lambda: files(png(picture(0)), b"/etc/hostname"), r"encoded\[1\]"),
        (lambda: pixels(picture(1)[..., :2]), "expected UINT8"),
        (lambda: pixels(np.zeros((70, 4, 4, 3), np.uint8)), "at most 64"),
    ],
)
def test_a_wrong_request_gets_a_sentence(client: Any, given: Any, message: str) -> None:
    with pytest.raises(InferenceServerException, match=message):
        client.infer(NAMES[0], [given()])


def test_unknown_models_and_outputs_are_refused_and_make_no_metrics(client: Any, server: RunningServer) -> None:
    with pytest.raises(InferenceServerException, match="not found"):
        client.infer("other-model", [pixels(picture(1))])
    with pytest.raises(InferenceServerException, match="'mask' does not exist"):
        client.infer(NAMES[0], [pixels(picture(1))], outputs=[triton.InferRequestedOutput("mask")])
    assert b"other-model" not in get(server.address, "GET", "/metrics")[1]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/repository/index"),
        ("POST", f"/v2/repository/models/{NAMES[0]}/unload"),
        ("POST", f"/v2/repository/models/{NAMES[0]}/load"),
        ("GET", "/v2/docs"),
        ("GET", f"/v2/models/{NAMES[0]}/docs"),
        ("POST", f"/v2/models/{NAMES[0]}/generate"),
        ("POST", f"/v2/models/{NAMES[0]}/infer_stream"),
        ("POST", f"/v2/models/{NAMES[0]}/versions/1/infer"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
    ],
)
def test_the_server_does_nothing_but_infer(server: RunningServer, method: str, path: str) -> None:
    assert get(server.address, method, path, "{}" if method == "POST" else None)[0] in (404, 405)
    assert get(server.address, "GET", f"/v2/models/{NAMES[0]}/ready")[0] == 200


def test_a_large_request_is_refused_before_it_is_read(client: Any, server: RunningServer) -> None:
    path = f"/v2/models/{NAMES[0]}/infer"
    with pytest.raises(InferenceServerException, match="too large; expected at most 1000000 bytes"):
        client.infer(NAMES[0], [pixels(np.zeros((600, 600, 3), np.uint8))])
    # Without a length beforehand.
    status, _, _ = get(server.address, "POST", path, (bytes(100_000) for _ in range(20)))
    assert status == 413
    status, body, _ = get(server.address, "POST", path, b"...", Content_Encoding="gzip")
    assert (status, b"compressed" in body) == (415, True)


def test_another_sites_page_cannot_ask_by_a_name_of_its_own(server: RunningServer) -> None:
    assert get(server.address, "GET", "/v2", Host="evil.example")[0] == 403
    assert get(server.address, "GET", "/v2", Host="localhost:1234")[0] == 200


def test_prometheus_counts_verdicts(client: Any, server: RunningServer) -> None:
    def counted(verdict: str) -> float:
        text = get(server.address, "GET", "/metrics")[1].decode()
        wanted = f'vae_edge_pictures_total{{model="{NAMES[1]}",verdict="{verdict}"}} '
        return sum(float(line.removeprefix(wanted)) for line in text.splitlines() if line.startswith(wanted))

    before = [counted(verdict) for verdict in ("normal", "anomalous", "error")]
    client.infer(NAMES[1], [files(*(png(picture(seed)) for seed in range(5)))])
    with pytest.raises(InferenceServerException, match="encoded"):
        client.infer(NAMES[1], [files(b"nothing")])
    after = [counted(verdict) for verdict in ("normal", "anomalous", "error")]
    assert [new - old for new, old in zip(after, before, strict=True)] == [3, 2, 1]


def ask(stub: Any, content: bytes, *, raw: bool, metadata: Any = ()) -> Any:
    tensor = {"name": "encoded", "datatype": "BYTES", "shape": [1]}
    if raw:
        request = pb.ModelInferRequest(
            model_name=NAMES[0], inputs=[tensor], raw_input_contents=[struct.pack("<I", len(content)) + content]
        )
    else:
        request = pb.ModelInferRequest(
            model_name=NAMES[0], inputs=[{**tensor, "contents": {"bytes_contents": [content]}}]
        )
    return stub.ModelInfer(request, metadata=metadata, timeout=20)


def test_grpc_gives_the_same_verdicts_and_nothing_else(server: RunningServer) -> None:
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        assert stub.ServerReady(pb.ServerReadyRequest(), timeout=20).ready
        for seed, verdict in ((0, False), (1, True)):
            plain = ask(stub, png(picture(seed)), raw=False)
            assert plain.outputs[0].name == "is_anomalous"
            assert list(plain.outputs[0].contents.bool_contents) == [verdict]
            assert ask(stub, png(picture(seed)), raw=True).raw_output_contents[0] == bytes([verdict])
        refused: list[tuple[Callable[[], Any], grpc.StatusCode]] = [
            (lambda: stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=20), grpc.StatusCode.UNIMPLEMENTED),
            (
                lambda: stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=NAMES[0]), timeout=20),
                grpc.StatusCode.UNIMPLEMENTED,
            ),
            (lambda: stub.ModelInfer(pb.ModelInferRequest(model_name="x"), timeout=20), grpc.StatusCode.NOT_FOUND),
            (lambda: ask(stub, b"nothing", raw=True), grpc.StatusCode.INVALID_ARGUMENT),
            (lambda: ask(stub, bytes(1_100_000), raw=True), grpc.StatusCode.RESOURCE_EXHAUSTED),
        ]
        for call, code in refused:
            with pytest.raises(grpc.RpcError) as error:
                call()
            assert error.value.code() is code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_with_a_token_nothing_answers_without_it_and_a_signal_ends_it_soon(bundles: list[Path], number: int) -> None:
    options = ("--host", "0.0.0.0", "--grpc-port", "0")
    with RunningServer(bundles[0], options=options, token=TOKEN) as server:
        request = json.dumps({"inputs": []})
        for method, path, body in (
            ("GET", "/v2", None),
            ("GET", "/v2/health/ready", None),
            ("GET", "/metrics", None),
            ("GET", "/nowhere", None),
            ("POST", f"/v2/models/{NAMES[0]}/infer", request),
        ):
            for headers in ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": f"Basic {TOKEN}"}):
                status, _, given = get(server.address, method, path, body, **headers)
                assert (status, given["WWW-Authenticate"]) == (401, "Bearer")
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with triton.InferenceServerClient(server.address) as client:
            got = client.infer(NAMES[0], [files(png(picture(1)))], headers=headers)
            assert got.as_numpy("is_anomalous").tolist() == [True]
            with grpc.insecure_channel(server.grpc_address) as channel:
                stub = GRPCInferenceServiceStub(channel)
                with pytest.raises(grpc.RpcError) as error:
                    ask(stub, png(picture(1)), raw=True)
                assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
                ask(stub, png(picture(1)), raw=True, metadata=(("authorization", f"Bearer {TOKEN}"),))
                # With both connections still open.
                code, seconds = server.end(number)
        assert code == 0
        assert seconds < 45  # About one, half of it work; a busy machine takes longer.
        assert "Traceback" not in "".join(server.lines)


def state_of(address: str, since: int = 0) -> Any:
    status, body, _ = get(address, "GET", f"/page/state?since={since}", Authorization=f"Bearer {TOKEN}")
    assert status == 200
    return json.loads(body)


def test_the_page_shows_what_was_judged_to_those_who_have_the_token(bundles: list[Path]) -> None:
    with RunningServer(*bundles, options=("--page",), token=TOKEN) as server:
        status, page, headers = get(server.address, "GET", "/page")
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in policy
        assert b"://" not in page  # It names no other place.
        for path in ("/page/state", "/page/image/1", "/page/", "/page%2fstate", "//page"):
            assert get(server.address, "GET", path)[0] == 401

        given = {"Authorization": f"Bearer {TOKEN}"}
        with triton.InferenceServerClient(server.address) as client:
            for seed in (0, 2, 1):
                client.infer(NAMES[0], [files(png(picture(seed)))], headers=given)
            with pytest.raises(InferenceServerException):
                client.infer(NAMES[0], [files(b"nothing")], headers=given)
        ends = time.monotonic() + PATIENCE_S
        while not (found := state_of(server.address)["bundles"])[NAMES[0]]["anomalies"]:
            assert time.monotonic() < ends
            time.sleep(0.1)
        assert set(found) == set(NAMES)
        assert found[NAMES[0]]["counts"] == {"normal": 2, "anomalous": 1, "not inspectable": 0, "error": 1}
        assert found[NAMES[1]]["last"] is None
        last, (anomaly,) = found[NAMES[0]]["last"], found[NAMES[0]]["anomalies"]
        assert (last["verdict"], anomaly["score"]) == ("anomalous", last["score"])
        assert 0 < found[NAMES[0]]["p50_s"] <= found[NAMES[0]]["p99_s"]
        for shown in (last, anomaly):
            status, body, headers = get(server.address, "GET", f"/page/image/{shown['image']}", **given)
            assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, "image/jpeg", "no-store")
            assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
            pixels_shown = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
            assert pixels_shown is not None
            assert pixels_shown.shape == (48, 48, 3)
        version = state_of(server.address)["version"]
        assert state_of(server.address, version)["bundles"] == {}
        assert get(server.address, "GET", "/page/image/999", **given)[0] == 404
        for wrong in ("-1", "x", "1" * 40):
            assert get(server.address, "GET", f"/page/state?since={wrong}", **given)[0] == 400
        assert server.end()[0] == 0
        assert f"The page is http://{server.address}/page" in "".join(server.lines)


def test_without_page_there_is_none(server: RunningServer) -> None:
    for path in ("/page", "/page/state", "/page/image/1"):
        assert get(server.address, "GET", path)[0] == 404


def test_drift_is_watched_for_each_bundle_over_restarts(bundles: list[Path], tmp_path: Path) -> None:
    bundles = [make_bundle(tmp_path / NAMES[0], gate=toy_gate()).folder, bundles[1]]
    options = ("--drift", str(tmp_path / "states"), "--no-gate", "--false-alarm-rate", "0.2", "--page")
    for n_before, n_now in ((0, 3), (3, 30)):
        with RunningServer(*bundles, options=options, token=TOKEN) as server:
            drift = state_of(server.address)["bundles"][NAMES[0]]["drift"]
            assert f"after {n_before} parts" in drift["evidence"]
            given = {"Authorization": f"Bearer {TOKEN}"}
            with triton.InferenceServerClient(server.address) as client:
                for seed in range(n_now):
                    answer = client.infer(NAMES[0], [files(png(spotted_image(seed)))], headers=given)
            assert answer.as_numpy("verdict")[0] == b"anomalous"
            with Detector.open(bundles[0], false_alarm_rate=0.2, gate=False) as detector:
                assert answer.as_numpy("threshold")[0] == np.float32(detector.thresholds.image_threshold)
            if n_before == 0:
                # One of another server would not know what this one sees.
                code, text = serve_in_vain(*bundles, "--port", 0, "--drift", tmp_path / "states")
                assert (code, "another program watches for drift with" in text) == (1, True)
            assert server.end()[0] == 0
    with RunningServer(*bundles, options=options, token=TOKEN) as server:
        found = state_of(server.address)["bundles"]
        assert found[NAMES[0]]["drift"]["alarm"] is True
        assert found[NAMES[0]]["drift"]["size"].startswith("Scores are higher by ")
        assert found[NAMES[1]]["drift"]["alarm"] is False
        assert found[NAMES[0]]["has_gate"] is False
        with triton.InferenceServerClient(server.address) as client:
            client.infer(NAMES[0], [files(png(spotted_image(0)))], headers=given)
        metrics = get(server.address, "GET", "/metrics", **given)[1].decode()
        assert f'vae_edge_drift_alarm{{model="{NAMES[0]}"}} 1.0' in metrics
    assert sorted(path.name for path in (tmp_path / "states").glob("[!.]*")) == [
        f"{name}.drift" for name in sorted(NAMES)
    ]


def test_options_of_verdicts_that_cannot_be_are_one_sentence(bundles: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for options, expected in (
        (("--drift", tmp_path / "file"), "is a file; expected a folder"),
        (("--drift-alarm", 0.1), "--drift-alarm is for drift: add --drift DIR"),
        (("--false-alarm-rate", 0.001), f"{NAMES[0]}: the false-alarm rate is 0.001; the smallest that"),
        (("--no-gate",), "--no-gate is for bundles with a gate, and none of these has one"),
    ):
        code, text = serve_in_vain(*bundles, "--port", 0, *options)
        assert (code, expected in text) == (2, True), text


def test_with_a_certificate_of_its_own_http_and_grpc_are_encrypted(bundles: list[Path], tmp_path: Path) -> None:
    own, key = self_signed(tmp_path)
    given = {"Authorization": f"Bearer {TOKEN}"}
    options = ("--page", "--grpc-port", "0", "--certificate", str(own), "--private-key", str(key))
    with RunningServer(bundles[0], options=options, token=TOKEN) as server:
        port = int(server.address.rpartition(":")[2])
        trusting = ssl.create_default_context(cafile=str(own))
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=trusting)
        connection.request("GET", "/v2/health/ready", headers=given)
        assert connection.getresponse().status == 200
        assert connection.sock.version() in ("TLSv1.2", "TLSv1.3")
        connection.close()
        with pytest.raises(ssl.SSLCertVerificationError):
            http.client.HTTPSConnection("127.0.0.1", port, timeout=20).request("GET", "/v2/health/ready")
        with pytest.raises((http.client.HTTPException, OSError)):
            get(server.address, "GET", "/v2/health/ready", **given)
        credentials = grpc.ssl_channel_credentials(own.read_bytes())
        metadata = (("authorization", f"Bearer {TOKEN}"),)
        with grpc.secure_channel(server.grpc_address, credentials) as channel:
            answer = ask(GRPCInferenceServiceStub(channel), png(picture(1)), raw=True, metadata=metadata)
            assert {output.name for output in answer.outputs} >= {"verdict", "score"}
        with grpc.insecure_channel(server.grpc_address) as channel, pytest.raises(grpc.RpcError):
            ask(GRPCInferenceServiceStub(channel), png(picture(1)), raw=True, metadata=metadata)
        assert server.end()[0] == 0
        assert f"The page is https://{server.address}/page" in "".join(server.lines)


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for this machine as SERVING.md says, and its key."""
    page = (ROOT / "vae_edge/serve/SERVING.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^openssl req (?:.*\\\n)*.*$", page, re.MULTILINE)
    own = command.replace("DNS:press3", "DNS:localhost").replace("IP:10.0.0.5", "IP:127.0.0.1")
    subprocess.run(["bash", "-ec", own], cwd=folder, check=True, capture_output=True)
    return folder / "server.pem", folder / "server-key.pem"


def test_a_certificate_that_cannot_be_used_is_one_sentence(bundles: list[Path], tmp_path: Path) -> None:
    own, key = self_signed(tmp_path)
    (tmp_path / "other").mkdir()
    _, other_key = self_signed(tmp_path / "other")
    old, old_key = certificate(tmp_path, "old", days=-1)
    for options, code, expected in (
        (("--certificate", own), 2, "--certificate needs --private-key; pass both or neither"),
        (("--private-key", key), 2, "--private-key needs --certificate; pass both or neither"),
        (("--certificate", own, "--private-key", other_key), 2, "do not fit together"),
        (("--certificate", key, "--private-key", own), 2, "do not fit together"),
        (("--certificate", own, "--private-key", tmp_path / "no"), 1, "could not be read (No such file"),
        (
            ("--certificate", old, "--private-key", old_key),
            2,
            "old.pem has a certificate that has expired: that of old was valid",
        ),
    ):
        found, text = serve_in_vain(bundles[0], "--port", 0, *options)
        assert (found, expected in text) == (code, True), text


def serve_in_vain(*words: object) -> tuple[int, str]:
    ended = subprocess.run(
        [sys.executable, "-m", "vae_edge", "serve", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return ended.returncode, " ".join(ended.stderr.split())


def test_a_port_in_use_or_a_missing_token_is_one_sentence(bundles: list[Path], server: RunningServer) -> None:
    port = server.address.rpartition(":")[2]
    code, text = serve_in_vain(bundles[0], "--port", port)
    assert code == 1
    assert f"port {port} of 127.0.0.1 cannot be used" in text
    assert "--port" in text
    code, text = serve_in_vain(bundles[0], "--port", 0, "--grpc-port", server.grpc_address.rpartition(":")[2])
    assert code == 1
    assert "--grpc-port" in text
    code, text = serve_in_vain(bundles[0], "--port", 0, "--host", "0.0.0.0")
    assert code == 2
    assert "needs a token" in text
    code, text = serve_in_vain(bundles[0], bundles[0], "--port", 0)
    assert code == 2
    assert "two bundles are called toy-onnx-fp32" in text


def test_the_environment_opens_no_other_door(
    bundles: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MLServer reads its settings from there, and from .env in the current folder.
    (tmp_path / ".env").write_text("MLSERVER_DEBUG=true\nMLSERVER_METRICS_ENDPOINT=/elsewhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLSERVER_KAFKA_ENABLED", "true")
    monkeypatch.setenv("MLSERVER_PARALLEL_WORKERS", "3")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    with RunningServer(bundles[0]) as server:
        assert get(server.address, "GET", "/metrics")[0] == 200
        assert get(server.address, "GET", "/elsewhere")[0] == 404
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", 8082)) != 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".env"]


def test_the_client_of_the_page_runs_as_it_stands(
    server: RunningServer, tmp_path: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "vae_edge/serve/SERVING.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "part.png").write_bytes(png(picture(1)))
    monkeypatch.chdir(tmp_path)
    # Another port and bundle than in the text; nothing else.
    assert "127.0.0.1:8080" in program
    program = program.replace("127.0.0.1:8080", server.address).replace("tile-openvino-fp32", NAMES[1])
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[0] == "anomalous"
