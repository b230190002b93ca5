"""What the server answers is what the bundle says, in the form its document tells."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from speaking import HOSTS, QUICK, loaded

from polytask.bundle import Bundle
from polytask.errors import ConfigError
from polytask.serve.answers import Job
from polytask.serve.app import App, make_app
from polytask.serve.routes import QUESTIONS, document
from polytask.serve.settings import Options

JSON = {"content-type": "application/json"}
FORMS = {q.path: q for q in QUESTIONS}


@pytest.fixture(scope="module")
def app(bundles: tuple[Path, Path]) -> App:
    return loaded(bundles[0])


@pytest.fixture(scope="module")
def bundle(bundles: tuple[Path, Path]) -> Bundle:
    return Bundle.load(bundles[0])


async def send(app: App, path: str, body: dict[str, Any] | None) -> httpx.Response:
    """One question."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        return await (client.get(path) if body is None else client.post(path, json=body))


def ask(app: App, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """An answer, in the form that the document tells."""
    answer = asyncio.run(send(app, path, body))
    assert answer.status_code == 200, answer.text
    FORMS[path].gives.model_validate_json(answer.content, strict=True)
    found = answer.json()
    assert found["model_version"] == app.holder.current.version  # type: ignore[union-attr]
    return dict(found)


def refused(app: App, path: str, body: dict[str, Any]) -> tuple[int, str, str]:
    """Status, code and message of a refusal."""
    answer = asyncio.run(send(app, path, body))
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["message"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 3},
        {"k": 1000},
        {"mix": "watch * stars ** 0.5"},
        {"mix": {"watch": 1, "click": -0.5}},
        {"exclude_seen": False},
        {"candidates": ["i1", "i2", "i3", "nobody's"]},
        {"candidates": []},
        {"exclude": ["i1", "i2"]},
        {"context": {"device": "a", "hour": 3}},
    ],
    ids=str,
)
@pytest.mark.parametrize("user", ["u1", "nobody", None])
def test_recommendations_are_those_of_the_bundle(
    app: App, bundle: Bundle, user: str | None, options: dict[str, Any]
) -> None:
    told = ask(app, "/v1/recommend", options | ({"user_id": user} if user else {}))
    frame = bundle.recommend(user, **options)
    assert (told["user_id"], told["cold_start"]) == (user, user != "u1")
    assert [i["item_id"] for i in told["items"]] == frame["item"].to_list()
    assert [i["rank"] for i in told["items"]] == frame["rank"].to_list()
    assert [i["score"] for i in told["items"]] == frame["score"].to_list()
    for task in bundle.tasks:
        assert [i["values"][task] for i in told["items"]] == frame[task].to_list()
    assert all("display" not in i for i in told["items"])


def test_an_answer_names_its_mix(app: App, bundle: Bundle) -> None:
    assert ask(app, "/v1/recommend", {})["mix"] == bundle.mix.text
    assert ask(app, "/v1/recommend", {"mix": "stars  *watch"})["mix"] == "stars * watch"


def test_items_are_shown_by_what_their_table_says(app: App) -> None:
    told = ask(app, "/v1/recommend", {"user_id": "u1", "k": 2, "display": True})
    number = int(told["items"][0]["item_id"][1:])
    shown = told["items"][0]["display"]
    assert shown["title"].endswith(f"of {number}") and shown["price"] == f"{number}.0" and "item" not in shown


def test_scores_are_those_of_the_bundle(app: App, bundle: Bundle) -> None:
    rows = [
        {"user_id": "u1", "item_id": "i2", "device": "b", "hour": 4},
        {"user_id": "nobody", "item_id": "i2", "city": "Oslo", "age": 30.5},
        {"user_id": "u1", "item_id": None, "price": 3, "device": None},
        {},
    ]
    told = ask(app, "/v1/score", {"rows": rows})
    names = {"user_id": "user", "item_id": "item"}
    frame = pl.DataFrame([{names.get(k, k): v for k, v in row.items()} for row in rows], infer_schema_length=None)
    found = bundle.score(frame)
    assert [r["cold_start"] for r in told["rows"]] == [False, True, True, True]
    assert [r["item_id"] for r in told["rows"]] == ["i2", "i2", None, None]
    for task in bundle.tasks:
        assert [r["values"][task] for r in told["rows"]] == found[task].to_list()


def test_the_other_answers_are_those_of_the_bundle(app: App, bundle: Bundle) -> None:
    near = bundle.similar("i3", 4)
    told = ask(app, "/v1/similar", {"item_id": "i3", "k": 4, "display": True})
    assert [(i["item_id"], i["score"]) for i in told["items"]] == list(zip(near["item"], near["score"], strict=True))
    assert told["items"][0]["display"]["title"]
    why = ask(app, "/v1/explain", {"user_id": "u1", "item_id": "i3", "mix": "watch + stars"})
    expected = bundle.explain("u1", "i3", mix="watch + stars")
    assert {n: why[n] for n in ("score", "rank", "mix", "tasks", "parts")} == expected
    had = ask(app, "/v1/history", {"user_id": "u1", "limit": 3})
    assert [i["item_id"] for i in had["items"]] == bundle.history("u1", 3)["item"].to_list()


def test_users_and_items_are_found(app: App, bundle: Bundle) -> None:
    for side, text in (("item", "rose"), ("item", ""), ("user", "u1"), ("user", "")):
        told = ask(app, "/v1/search", {"side": side, "text": text, "limit": 3})
        assert [m["id"] for m in told["matches"]] == bundle.search(side, text, 3)[side].to_list()
        assert told["matches"]


def test_the_model_tells_what_it_is(app: App, bundle: Bundle) -> None:
    told = ask(app, "/v1/model")
    assert [t["name"] for t in told["tasks"]] == list(bundle.tasks)
    assert told["counts"]["users"] == 15 and told["display"]["title"] == "title"
    assert told["card"].startswith("---") and told["limits"]["k"] == 1000


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/recommend", {"k": -1}, "k: "),
        ("/v1/recommend", {"k": 0}, "k: "),
        ("/v1/recommend", {"k": 1001}, "k: "),
        ("/v1/recommend", {"k": 1.0}, "k: "),
        ("/v1/recommend", {"k": True}, "k: "),
        ("/v1/recommend", {"k": "10"}, "k: "),
        ("/v1/recommend", {"k": None}, "k: "),
        ("/v1/recommend", {"user_id": 196}, "user_id: "),
        ("/v1/recommend", {"user_id": "x" * 1025}, "user_id: "),
        ("/v1/recommend", {"user": "u1"}, "user: "),
        ("/v1/recommend", {"candidates": ["i1"] * 1001}, "candidates: "),
        ("/v1/recommend", {"candidates": "i1"}, "candidates: "),
        ("/v1/recommend", {"exclude": [1]}, "exclude.0: "),
        ("/v1/recommend", {"exclude_seen": 1}, "exclude_seen: "),
        ("/v1/recommend", {"diversity": 1.5}, "diversity: "),
        ("/v1/recommend", {"context": {"devise": "a"}}, "context: "),
        ("/v1/recommend", {"context": {"hour": "noon"}}, "context: "),
        ("/v1/recommend", {"context": {"hour": True}}, "context."),
        ("/v1/recommend", {"caps": {"genre": 0}}, "caps."),
        ("/v1/recommend", {"caps": {"gender": 2}}, "caps: "),
        ("/v1/recommend", {"mix": "wach"}, "mix, column 1: "),
        ("/v1/recommend", {"mix": "__import__('os')"}, "mix, column 12: "),
        ("/v1/recommend", {"mix": {"watch": "1"}}, "mix."),
        ("/v1/recommend", {"mix": 3}, "mix."),
        ("/v1/score", {"rows": []}, "rows: "),
        ("/v1/score", {"rows": [{}] * 1001}, "rows: "),
        ("/v1/score", {"rows": [{"colour": "red"}]}, "rows: "),
        ("/v1/score", {"rows": [{"rating": 5}]}, "rows: "),
        ("/v1/score", {"rows": [{"user_id": "u1"}, {"user_id": 5}]}, "rows.1: "),
        ("/v1/score", {"rows": [{"hour": "4"}]}, "rows.0: "),
        ("/v1/score", {}, "rows: "),
        ("/v1/similar", {}, "item_id: "),
        ("/v1/search", {"side": "basket"}, "side: "),
        ("/v1/history", {"user_id": "u1", "limit": 0}, "limit: "),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_with_its_place(
    app: App, path: str, body: dict[str, Any], message: str
) -> None:
    status, code, said = refused(app, path, body)
    assert (status, code) == (400, "invalid_request") and said.startswith(message) and len(said) <= 300


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/v1/similar", {"item_id": "nothing"}, "unknown_item"),
        ("/v1/explain", {"user_id": "nobody", "item_id": "i1"}, "unknown_user"),
        ("/v1/explain", {"user_id": "u1", "item_id": "\u202enothing\n"}, "unknown_item"),
        ("/v1/history", {"user_id": ""}, "unknown_user"),
    ],
)
def test_an_id_that_must_be_known_is_not_found(app: App, path: str, body: dict[str, Any], code: str) -> None:
    status, found, message = refused(app, path, body)
    assert (status, found) == (404, code) and message.isprintable()


def test_the_document_tells_every_question_and_its_errors() -> None:
    told = document()
    assert {p for p in told["paths"] if p.startswith("/v1")} == {q.path for q in QUESTIONS}
    for question in QUESTIONS:
        operation = told["paths"][question.path][question.method.lower()]
        assert "422" not in operation["responses"] and {"200", "400", "401"} <= operation["responses"].keys()
        assert not operation.get("parameters")
    assert told["components"]["schemas"]["AskRecommend"]["additionalProperties"] is False


def test_nothing_is_answered_before_a_bundle_is_loaded_and_that_is_no_end() -> None:
    empty = make_app(lambda: pytest.fail("not to be loaded"), QUICK, HOSTS)
    assert asyncio.run(send(empty, "/health/live", None)).status_code == 200
    for path, body in (("/health/ready", None), ("/v1/recommend", {}), ("/v1/model", None)):
        answer = asyncio.run(send(empty, path, body))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert answer.headers["retry-after"] == "1"


def test_the_page_links_to_a_report_only_where_there_is_one() -> None:
    page = b"<!DOCTYPE html><html><body>who gained</body></html>"
    shown, plain = (make_app(lambda: pytest.fail("not to be loaded"), QUICK, HOSTS, report=r) for r in (page, None))
    answer = asyncio.run(send(shown, "/report", None))
    assert (answer.status_code, answer.content) == (200, page)
    assert answer.headers["content-security-policy"] == "frame-ancestors 'none'"
    assert '<a href="/report">' in asyncio.run(send(shown, "/", None)).text
    assert asyncio.run(send(plain, "/report", None)).status_code == 404
    assert '<a href="/report" hidden>' in asyncio.run(send(plain, "/", None)).text


def test_a_report_must_be_one_and_goes_with_no_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("x" * 20, "utf-8")
    (tmp_path / "report.html").write_text("{}", "utf-8")
    with pytest.raises(ConfigError, match="leave out --report"):
        Options(tmp_path, token_file=tmp_path / "token", report=tmp_path / "report.html")
    for name in ("report.html", "absent.html"):
        with pytest.raises(ConfigError, match=f"{name} is no report"):
            Options(tmp_path, report=tmp_path / name).page()
    (tmp_path / "report.html").write_text("<html>", "utf-8")
    assert Options(tmp_path, report=tmp_path / "report.html").page() == b"<html>"


def slow(app: App, call: Any) -> None:
    """Let every question about scores take as long as ``call``."""
    app._questions["/v1/score"] = FORMS["/v1/score"]._replace(prepare=lambda snapshot, asked: Job(call))


def test_too_many_and_too_slow_questions_are_refused_and_health_is_not(bundles: tuple[Path, Path]) -> None:
    app, free, began = loaded(bundles[0], replace(QUICK, queue=2, work=0.3)), threading.Event(), []

    def wait() -> bytes:
        began.append(1)
        free.wait(20)
        return b"{}"

    slow(app, wait)

    async def main() -> list[int]:
        body = {"rows": [{}]}
        asked = [asyncio.create_task(send(app, "/v1/score", body)) for _ in range(5)]
        await asyncio.sleep(0.05)
        assert (await send(app, "/health/ready", None)).status_code == 200
        assert (await send(app, "/v1/recommend", {"user_id": "u1"})).status_code == 200  # predicted already
        answers = [await a for a in asked]
        assert [a.headers.get("retry-after") for a in answers if a.status_code == 429] == ["1"] * 3
        return [a.status_code for a in answers]

    assert sorted(asyncio.run(main())) == [429, 429, 429, 504, 504]
    free.set()
    app.work.close()
    assert began == [1]  # the other was given up before it began


def test_a_question_whose_asker_is_gone_is_not_begun(bundles: tuple[Path, Path]) -> None:
    app, free, began = loaded(bundles[0]), threading.Event(), []

    def wait() -> bytes:
        began.append(1)
        free.wait(20)
        return b"{}"

    slow(app, wait)

    async def main() -> None:
        first = asyncio.create_task(send(app, "/v1/score", {"rows": [{}]}))
        while not began:
            await asyncio.sleep(0.01)
        messages = [{"type": "http.request", "body": b'{"rows":[{}]}'}, {"type": "http.disconnect"}]
        sent: list[Any] = []

        async def receive() -> Any:
            return messages.pop(0)

        async def note(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/score", "query_string": b"", "headers": headers}
        await app(scope, receive, note)
        assert sent == []
        await asyncio.sleep(0.02)
        free.set()
        assert (await first).status_code == 200

    asyncio.run(main())
    assert began == [1]


def test_a_fault_tells_the_client_nothing_and_the_log_no_values(
    bundles: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    app = loaded(bundles[0])
    slow(app, lambda: {}["secret id"])
    status, code, message = refused(app, "/v1/score", {"rows": [{}]})
    assert (status, code) == (500, "internal") and "KeyError" not in message
    logged = capsys.readouterr().err
    assert "KeyError" in logged and "test_app.py" in logged and "secret" not in logged


def test_what_is_counted_has_no_ids_in_it(bundles: tuple[Path, Path]) -> None:
    app = loaded(bundles[0])
    ask(app, "/v1/recommend", {"user_id": "u1"})
    refused(app, "/v1/similar", {"item_id": "a-secret-item"})
    refused(app, "/a-secret-path", {})
    text = asyncio.run(send(app, "/metrics", None)).text
    assert 'polytask_requests_total{code="200",route="/v1/recommend",worker="1"} 1.0' in text
    assert 'polytask_requests_total{code="404",route="/v1/similar",worker="1"} 1.0' in text
    assert 'polytask_requests_total{code="404",route="other",worker="1"} 1.0' in text
    assert 'polytask_request_seconds_count{route="/v1/recommend",worker="1"} 1.0' in text
    assert f'polytask_model_info{{version="{app.holder.current.version}",worker="1"}} 1.0' in text  # type: ignore[union-attr]
    assert 'polytask_queue_length{worker="1"} 0.0' in text and "secret" not in text
