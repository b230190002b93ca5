"""A real server against clients that mean ill, break off, or say nothing: each has one answer, and none is 5xx."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from speaking import QUICK, Client, loaded, read_answer, running, wait_until

from polytask.bundle import Bundle
from polytask.serve.routes import QUESTIONS

HEAD = b"POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
SERVE = "import sys; from pathlib import Path; from polytask.serve import Limits, Options, serve; "


@pytest.fixture(scope="module")
def client(bundles: tuple[Path, Path]) -> Iterator[Client]:
    with running(loaded(bundles[0])) as found:
        yield found


def said(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    """Status and code of a refusal in its documented form."""
    status, headers, body = answer
    error = json.loads(body)["error"]
    assert headers["content-type"] == "application/json"
    assert error.keys() == {"code", "message", "request_id"} and "Traceback" not in error["message"]
    return status, error["code"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"k":-1}', (400, "invalid_request")),
        (b'{"k":1683}', (400, "invalid_request")),
        (b'{"k":%d}' % 10**30, (400, "malformed_json")),
        (b'{"k":NaN}', (400, "malformed_json")),
        (b'{"k":Infinity}', (400, "malformed_json")),
        (b'{"k":1e400}', (400, "malformed_json")),
        (b'{"k":1e30}', (400, "invalid_request")),
        (b'{"k":null}', (400, "invalid_request")),
        (b'{"k":"10"}', (400, "invalid_request")),
        (b'{"k":10.0}', (400, "invalid_request")),
        (rb'{"user_id":"\ud800"}', (400, "malformed_json")),
        (b'{"user_id":"u1","user_id":"u2"}', (400, "malformed_json")),
        (b'{"user_id":{"$ne":null}}', (400, "invalid_request")),
        (b'{"user_id":["u1"]}', (400, "invalid_request")),
        (b'{"user_id":"' + b"x" * 2000 + b'"}', (400, "invalid_request")),
        (b'{"__proto__":1}', (400, "invalid_request")),
        (b'{"context":' + b"[" * 5000 + b"]" * 5000 + b"}", (400, "malformed_json")),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, (400, "malformed_json")),
        (b'{"diversity":1e308}', (400, "invalid_request")),
        (b'{"mix":"' + b"(" * 900 + b'"}', (400, "invalid_request")),
        (b'{"mix":"9**9**9**9**9**9*watch"}', None),
        (b'{"mix":"watch/0"}', None),
        (b"\x00" * 100, (400, "malformed_json")),
        (b"\xff\xfe{\x00}\x00", (400, "malformed_json")),
        (b"", (400, "malformed_json")),
    ],
    ids=lambda v: repr(v)[:40],
)
def test_a_hostile_body_has_its_code(client: Client, body: bytes, expected: tuple[int, str] | None) -> None:
    answer = client.post("/v1/recommend", body)
    if expected is None:
        assert answer[0] in (200, 400) and orjson.loads(answer[2])
    else:
        assert said(answer) == expected


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", (400, "malformed_request")),
        (b"GET\r\n\r\n", (400, "malformed_request")),
        (b"GET / HTTP/9.9\r\n\r\n", (400, "malformed_request")),
        (b"GET /health/live HTTP/1.1\r\nHost : localhost\r\n\r\n", (400, "malformed_request")),
        (b"GET /health/live HTTP/1.1\r\nHost: a\x00b\r\n\r\n", (400, "malformed_request")),
        (b"GET /health/live HTTP/1.1\r\n\r\n", (403, "host_not_allowed")),
        (b"GET /health/live HTTP/1.1\r\nHost: evil.example\r\n\r\n", (403, "host_not_allowed")),
        (b"GET http://evil.example/v1/model HTTP/1.1\r\nHost: evil.example\r\n\r\n", (403, "host_not_allowed")),
        (b"GET /%zz HTTP/1.1\r\nHost: localhost\r\n\r\n", (404, "not_found")),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", (404, "not_found")),
        (b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", (400, "malformed_request")),
        (HEAD + b"Content-Length: -1\r\n\r\n{}", (400, "malformed_request")),
        (HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", (400, "malformed_request")),
        (HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", (400, "malformed_request")),
        (HEAD + b"Content-Length: 999999999999999999999999\r\n\r\n{}", (400, "malformed_request")),
        (HEAD + b"Content-Length: 200000000\r\n\r\n{}", (413, "body_too_large")),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", (400, "malformed_request")),
        (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", None),
        (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b", (415, "unsupported_media_type")),
        (HEAD.replace(b"application/json", b"text/plain") + b"\r\n", (415, "unsupported_media_type")),
        (HEAD + b"Content-Length: 2\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n{}", None),
        (HEAD + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n{}", None),
        (HEAD + b"X: " + b"y" * 20_000 + b"\r\n\r\n", (431, "headers_too_large")),
        (HEAD + b"".join(b"X-%d: y\r\n" % n for n in range(10_000)) + b"\r\n", (431, "headers_too_large")),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", (431, "headers_too_large")),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", (400, "malformed_request")),
    ],
    ids=lambda v: repr(v)[-40:],
)  # fmt: skip
def test_a_hostile_head_has_its_code(client: Client, request_: bytes, expected: tuple[int, str] | None) -> None:
    answer = client.send(request_)
    if expected is None:
        assert answer[0] in (100, 200, 400)
    else:
        assert said(answer) == expected
    assert client.ask("/v1/recommend", k=1)["items"]


@pytest.mark.parametrize(
    "path",
    ["/assets/", "/assets", "/assets/..", "/assets/../app.py", "/assets/%2e%2e/app.py", "/assets/..%2fapp.py",
     "/assets/%252e%252e/app.py", "/assets/..\\app.py", "/assets/%5c..%5capp.py", "/assets//etc/passwd",
     "/assets/main.js%00", "/assets/MAIN.JS", "/assets/index.html", "/index.html", "/v1/recommend/", "/../run.py"],
)  # fmt: skip
def test_no_path_leads_out_of_the_list(client: Client, path: str) -> None:
    assert said(client.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())) == (404, "not_found")


def test_a_body_in_chunks_is_read_and_one_without_end_is_cut(client: Client) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % c for c in b'{"k":2}') + b"0\r\n\r\n"
    status, _, body = client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
    assert status == 200 and len(json.loads(body)["items"]) == 2
    with client.connect() as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        sent = 0
        with suppress(OSError):
            while sent < 200 * QUICK.body:
                connection.sendall(b"4000\r\n" + b" " * 0x4000 + b"\r\n")
                sent += 0x4000
        assert sent < 200 * QUICK.body  # cut off while it was still sending


def test_a_large_body_is_refused_by_its_length_and_the_answer_arrives(client: Client) -> None:
    body = b" " * (2 * QUICK.body)
    status, headers, answer = client.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert said((status, headers, answer)) == (413, "body_too_large") and headers["connection"] == "close"


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (b"GET /health", (408, "read_timeout")),
        (HEAD, (408, "read_timeout")),
        (HEAD + b"Content-Length: 10\r\n\r\n{", (408, "read_timeout")),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{", (408, "read_timeout")),
        (b"", None),
    ],
    ids=["a line", "a head", "a body", "a chunk", "nothing"],
)
def test_who_stops_halfway_is_cut_off_in_time(client: Client, part: bytes, expected: tuple[int, str] | None) -> None:
    began = time.monotonic()
    with client.connect() as connection:
        connection.sendall(part)
        answer = read_answer(connection)
        assert (said(answer) if expected else answer[0]) == (expected or 0)
        assert connection.recv(1) == b""
    assert QUICK.read * 0.9 <= time.monotonic() - began < QUICK.read + 5


def test_who_drips_is_cut_off_and_others_are_served_meanwhile(client: Client) -> None:
    slow = [client.connect() for _ in range(50)]
    for n, connection in enumerate(slow):
        connection.sendall(b"GET /health" if n % 2 else HEAD + b"Content-Length: 100\r\n\r\n")
    end, served = time.monotonic() + 2 * QUICK.read, 0
    while time.monotonic() < end:
        for connection in slow:
            with suppress(OSError):
                connection.sendall(b" ")
        assert client.ask("/v1/recommend", user_id="u1", k=2)["items"]
        served += 1
        time.sleep(0.05)
    assert served > 5
    for connection in slow:
        connection.settimeout(5)
        with suppress(ConnectionError), connection:
            while connection.recv(1 << 16):
                pass


def test_a_connection_is_used_again_and_questions_may_follow_each_other(client: Client) -> None:
    question = HEAD + b"Content-Length: 7\r\n\r\n" + b'{"k":1}'
    with client.connect() as connection:
        for _ in range(3):
            connection.sendall(question)
            assert read_answer(connection)[0] == 200
        connection.sendall(question * 3)
        received = b""
        while received.count(b"HTTP/1.1 200") < 3:
            received += connection.recv(1 << 16)


def test_too_many_connections_are_turned_away(bundles: tuple[Path, Path]) -> None:
    limits = replace(QUICK, connections=3)
    with running(loaded(bundles[0], limits), limits) as client:
        held = [client.connect() for _ in range(3)]
        wait_until(lambda: said_or_none(client) == (503, "too_many_connections"))
        for connection in held:
            connection.close()
        wait_until(lambda: client.send(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")[0] == 200)


def said_or_none(client: Client) -> tuple[int, str] | None:
    with client.connect() as connection:
        connection.settimeout(0.2)
        with suppress(TimeoutError):
            return said(read_answer(connection))
    return None


def test_generated_requests_keep_to_the_document(client: Client) -> None:
    """What the OpenAPI document allows is answered as it says, and what it forbids is refused as it says."""
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{client.port}/openapi.json")
    asked: set[str] = set()

    @settings(max_examples=12, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    def check(case) -> None:  # type: ignore[no-untyped-def]
        asked.add(case.path)
        # A mix, a context or a column can be named that this bundle does not have: no schema tells that.
        answer = case.call_and_validate(excluded_checks=[positive_data_acceptance])
        assert answer.status_code < 500

    for operation in schema.get_all_operations():
        given(case=operation.ok().as_strategy())(check)()
    assert {q.path for q in QUESTIONS} <= asked


@contextmanager
def process(bundle: Path, options: str = "") -> Iterator[tuple[subprocess.Popen[str], Client, list[dict[str, object]]]]:
    """A server in a process of its own, with what it logs."""
    limits = "limits=Limits(read=5.0, drain=3.0, notice=0.2, warm=0.5, watch=0.1)"
    code = f"{SERVE}\nif __name__ == '__main__': serve(Options(Path(sys.argv[1]), port=0, {options} {limits}))"
    script = bundle.parent / "start.py"
    script.write_text(code, "utf-8")
    started = subprocess.Popen([sys.executable, str(script), str(bundle)], stderr=subprocess.PIPE, text=True)
    lines: list[dict[str, object]] = []

    def follow() -> None:
        assert started.stderr is not None
        for line in started.stderr:
            lines.append(json.loads(line) if line.startswith("{") else {"event": line})

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        wait_until(lambda: count(lines, "ready") > 0 or started.poll() is not None, 90)
        yield started, Client(int(str(next(x["port"] for x in lines if x["event"] == "listening")))), lines
    finally:
        if started.poll() is None:
            started.kill()
        started.wait()
        thread.join()
        assert started.stderr is not None
        started.stderr.close()


def count(lines: list[dict[str, object]], event: str) -> int:
    """How often something was logged."""
    return sum(line["event"] == event for line in lines)


@pytest.fixture
def current(bundles: tuple[Path, Path], tmp_path: Path) -> Path:
    link = tmp_path / "current"
    link.symlink_to(bundles[0])
    return link


def point(current: Path, target: Path) -> None:
    fresh = current.with_name("fresh")
    fresh.symlink_to(target)
    fresh.rename(current)


def test_a_server_told_to_stop_ends_its_requests_and_does_not_wait_for_a_stuck_client(current: Path) -> None:
    with process(current) as (started, client, lines):
        with client.connect() as stuck, client.connect() as kept, client.connect() as half:
            stuck.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
            question = HEAD + b"Content-Length: 7\r\n\r\n" + b'{"k":1}'
            kept.sendall(question)
            assert read_answer(kept)[0] == 200
            half.sendall(question[:-1])
            time.sleep(0.2)
            started.send_signal(signal.SIGTERM)
            began = time.monotonic()
            wait_until(lambda: count(lines, "stopping") == 1)
            kept.sendall(question)  # a connection that idled is answered once more
            status, headers, _ = read_answer(kept)
            assert (status, headers["connection"]) == (200, "close")
            half.sendall(question[-1:])
            assert read_answer(half)[0] == 200
            assert started.wait(20) == 0
            assert time.monotonic() - began < 8  # of these, 3 to drain
        assert count(lines, "fault") == 0


def test_a_signal_and_a_watched_link_bring_a_new_bundle_to_every_worker(
    bundles: tuple[Path, Path], current: Path
) -> None:
    versions = [Bundle.load(b).version for b in bundles]
    with process(current, "workers=2,") as (started, client, lines):
        wait_until(lambda: count(lines, "ready") == 2, 90)
        point(current, bundles[1])
        started.send_signal(signal.SIGHUP)
        wait_until(lambda: count(lines, "loaded") == 4)
        answers = [client.ask("/v1/recommend", user_id="u1") for _ in range(20)]
        assert all(a == answers[0] for a in answers) and answers[0]["model_version"] == versions[1]
        started.send_signal(signal.SIGTERM)
        assert started.wait(20) == 0


def test_a_bundle_that_cannot_be_loaded_ends_the_start(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    with process(tmp_path / "nothing") as (started, _, lines):
        assert started.wait(20) != 0
        assert [x["event"] for x in lines][:2] == ["listening", "refused"]


def test_a_taken_port_is_a_fault_of_the_user() -> None:
    from polytask.errors import ConfigError
    from polytask.serve import Options, serve

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="--port"):
        serve(Options(Path("bundle"), port=taken.getsockname()[1]))


def test_serving_imports_no_trainer() -> None:
    code = "import sys, polytask.serve.app, polytask.serve.connection; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    trainers = {f"polytask.{m}" for m in ("train", "compare", "report", "replicas", "sweep", "tune")}
    assert not trainers & set(found.stdout.split())
