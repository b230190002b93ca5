"""What is let in: JSON that has one meaning, known names, the token, and nothing beside."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from speaking import QUICK, loaded

from polytask.errors import ConfigError
from polytask.serve.app import App
from polytask.serve.explorer import pages
from polytask.serve.guard import Guard
from polytask.serve.reply import RequestError
from polytask.serve.routes import HEALTH, QUESTIONS
from polytask.serve.settings import Options
from polytask.serve.strict import read_json

TOKEN = "0123456789abcdef"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def app(bundles: tuple[Path, Path]) -> App:
    return loaded(bundles[0])


@pytest.fixture(scope="module")
def closed(bundles: tuple[Path, Path]) -> App:
    return loaded(bundles[0], token=TOKEN)


def ask(app: App, method: str, url: str, **request: Any) -> httpx.Response:
    """One request to an application, without a network."""

    async def main() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.request(method, url, **request)

    return asyncio.run(main())


def code(answer: httpx.Response) -> str:
    """The code of an error, whose form is checked."""
    error = answer.json()["error"]
    assert error.keys() == {"code", "message", "request_id"}
    assert error["request_id"] == answer.headers["x-request-id"]
    assert error["message"].isprintable() and "/" not in error["message"].replace("application/json", "").replace(
        "/v1/score", ""
    )
    return str(error["code"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b'"a"',
        b"{",
        b'{"a":1}x',
        b'{"a":1,}',
        b"{'a':1}",
        b'{"a":01}',
        b"\xef\xbb\xbf{}",
        b'{"a":"\xff"}',
        b'{"a":"\x01"}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e400}',
        b'{"a":-1e400}',
        rb'{"a":"\ud800"}',
        rb'{"\udfff":1}',
        b'{"a":1,"a":1}',
        rb'{"a":1,"\u0061":2}',
        b'{"b":{"a":1,"c":":","a":2}}',
        b'{"a":%d}' % 10**30,
        b'{"a":-9223372036854775809}',
        b'{"a":[9223372036854775808]}',
        b'{"a":' + b"[" * 32 + b"]" * 32 + b"}",
        b'{"a":' * 40 + b"1" + b"}" * 40,
        b"[" * 100_000,
    ],
)
def test_what_is_no_json_object_of_one_meaning_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as refused:
        read_json(body, 32)
    assert (refused.value.status, refused.value.code) == (400, "malformed_json")


def test_what_only_looks_suspicious_is_read() -> None:
    body = rb'{"a":{"a":":::"},"b":[1e30,9223372036854775807,-9223372036854775808],"c":"\ud83d\ude00","":"\u0000"}'
    assert read_json(body, 32) == json.loads(body)
    assert read_json(b'{"a":' + b"[" * 31 + b"]" * 31 + b"}", 32)["a"]


LEAVES = st.none() | st.booleans() | st.text(max_size=5) | st.integers(-(2**63), 2**63 - 1) | st.floats(-1e300, 1e300)


@settings(max_examples=60)
@given(st.dictionaries(st.text(max_size=5), LEAVES | st.lists(LEAVES) | st.dictionaries(st.text(max_size=3), LEAVES)))
def test_reading_is_the_inverse_of_writing(value: dict[str, Any]) -> None:
    assert read_json(json.dumps(value, ensure_ascii=False).encode(), 32) == value


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.path)
def test_every_question_needs_the_token(closed: App, question: Any) -> None:
    for headers in ({}, {"authorization": TOKEN}, {"authorization": "Bearer "}, {"authorization": f"Bearer {TOKEN}x"}):
        answer = ask(closed, question.method, question.path, headers=JSON | headers)
        assert (answer.status_code, code(answer)) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    answer = ask(closed, question.method, question.path, headers=JSON | {"authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == (200 if question.asks is None else 400)


def test_only_health_and_the_page_are_open_and_unknown_paths_are_not(closed: App) -> None:
    paths = [q.path for q in QUESTIONS] + [*HEALTH, *pages(), "/metrics", "/openapi.json", "/docs", "/redoc", "/v2"]
    open_ones = [p for p in paths if ask(closed, "GET", p).status_code != 401]
    assert open_ones == [*HEALTH, *pages()]


STRANGE = ["evil.example", "localhost.evil.example", "", "localhost:99999", "a@localhost", "[::1", "localhost/.."]


@pytest.mark.parametrize("host", [*STRANGE, "127.0.0.1.nip.io", "localhost:", "LOCALHOST:8000", "127.0.0.1:80"])
def test_a_host_is_one_of_the_list(app: App, host: str) -> None:
    answer = ask(app, "GET", "/health/live", headers={"host": host})
    good = host in ("LOCALHOST:8000", "127.0.0.1:80", "localhost:")
    assert answer.status_code == (200 if good else 403)
    assert good or code(answer) == "host_not_allowed"


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "file://", "http://localhost.evil.example"])
def test_pages_of_other_sites_are_not_answered(app: App, origin: str) -> None:
    answer = ask(app, "POST", "/v1/recommend", content=b"{}", headers=JSON | {"origin": origin})
    assert (answer.status_code, code(answer)) == (403, "origin_not_allowed")
    own = ask(app, "POST", "/v1/recommend", content=b"{}", headers=JSON | {"origin": "http://localhost"})
    assert own.status_code == 200 and "access-control-allow-origin" not in own.headers


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=UTF-8", 200),
        ("application/json;", 200),
        ("application/json; charset=utf-16", 415),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/json+x", 415),
        ("", 415),
    ],
)
def test_a_body_is_json_and_says_so(app: App, kind: str, status: int) -> None:
    assert ask(app, "POST", "/v1/recommend", content=b"{}", headers={"content-type": kind}).status_code == status


def test_a_compressed_body_is_not_unpacked(app: App) -> None:
    answer = ask(app, "POST", "/v1/recommend", content=b"{}", headers=JSON | {"content-encoding": "gzip"})
    assert (answer.status_code, code(answer)) == (415, "unsupported_media_type")


def test_a_body_is_cut_while_it_is_read(app: App) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1 << 14
            yield b" " * (1 << 14)

    with pytest.raises(RequestError) as refused:
        asyncio.run(_read(Guard(QUICK, ["localhost"]), endless()))
    assert refused.value.status == 413 and sent <= QUICK.body + (1 << 14)


async def _read(guard: Guard, parts: AsyncIterator[bytes]) -> bytes:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": await anext(parts), "more_body": True}

    return await guard.read(receive)


def test_headers_are_bounded_and_those_that_matter_come_once(app: App) -> None:
    many = ask(app, "GET", "/health/live", headers=[(f"x-{n}", "y" * 100) for n in range(200)])
    assert (many.status_code, code(many)) == (431, "headers_too_large")
    twice = ask(app, "GET", "/health/live", headers=[("host", "localhost"), ("host", "evil.example")])
    assert (twice.status_code, code(twice)) == (400, "repeated_header")


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "HEAD", "PROPFIND"])
def test_a_question_is_asked_by_post_alone(app: App, method: str) -> None:
    answer = ask(app, method, "/v1/recommend")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_what_is_read_is_got_and_headed_and_nothing_is_asked_in_the_url(app: App) -> None:
    for path in ("/v1/model", "/health/live", "/health/ready", "/metrics", "/openapi.json", "/"):
        got, head = ask(app, "GET", path), ask(app, "HEAD", path)
        assert got.status_code == head.status_code == 200
        assert head.content == b"" and got.headers["content-type"] == head.headers["content-type"]
        assert got.headers["x-content-type-options"] == "nosniff"
        refused = ask(app, "POST", path, content=b"{}", headers=JSON)
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
        assert code(ask(app, "GET", f"{path}?a=1")) == "unexpected_query"
        assert code(ask(app, "GET", path, content=b"{}")) == "unexpected_body"


def test_the_page_is_its_own_and_lets_nothing_else_in(app: App) -> None:
    page = ask(app, "GET", "/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert page.headers["referrer-policy"] == "no-referrer"
    for path in pages():
        answer = ask(app, "GET", path)
        again = ask(app, "GET", path, headers={"if-none-match": answer.headers["etag"]})
        assert (answer.status_code, again.status_code, again.content) == (200, 304, b"")
        kinds = {"js": "text/javascript", "css": "text/css", "/": "text/html", "svg": "image/svg+xml"}
        assert answer.headers["content-type"].split(";")[0] == kinds[path.rpartition(".")[2]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"host": "0.0.0.0"}, "--token-file"),
        ({"host": "192.168.1.7"}, "--token-file"),
        ({"host": "example.com"}, "--token-file"),
        ({"host": "::", "token_file": Path("t")}, "--allow-host"),
        ({"workers": 0}, "workers"),
        ({"port": 65536}, "port"),
    ],
)
def test_an_open_door_needs_a_lock(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Options(Path("bundle"), **options)


def test_the_names_a_server_answers_to() -> None:
    assert Options(Path("b")).allowed == {"127.0.0.1", "localhost", "::1"}
    lock = Path("token")
    assert Options(Path("b"), host="0.0.0.0", token_file=lock, hosts=("Shop.example",)).allowed == {"shop.example"}
    assert Options(Path("b"), host="10.0.0.5", token_file=lock).allowed == {"10.0.0.5"}


@pytest.mark.parametrize("content", [b"", b"short", b"two words and more", b"\xff" * 20, "ümläute-sind-keine".encode()])
def test_a_token_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(ConfigError, match="token"):
        Options(Path("b"), token_file=tmp_path / "token").token()


def test_a_token_is_read_without_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n", "utf-8")
    assert Options(Path("b"), token_file=tmp_path / "token").token() == TOKEN
