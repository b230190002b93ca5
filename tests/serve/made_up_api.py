"""A server that answers as `polytask serve` does, with made-up users, items and predictions."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import exp, log
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

import polytask
from polytask.errors import ConfigError
from polytask.recommend.mix import Mix

EXPLORER = Path(polytask.__file__).parent / "serve" / "explorer"
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
VERSION = "3f9c2a71d04be856"
Answer = tuple[int, dict[str, Any]]

ADJECTIVES = ("Quiet", "Last", "Paper", "Northern", "Hollow", "Golden", "Second", "Distant")
NOUNS = ("Harbor", "Orchard", "Signal", "Winter", "Parade", "Lantern", "Crossing", "Meridian")
GENRES = ("Comedy", "Drama", "Crime", "Romance", "Sci-Fi", "Thriller", "Documentary")
CARD = """---
library_name: polytask
---
# made-up \\<model\\>

A recommender of **two** tasks, `watch` and *rating*; see [the docs](https://example.org/x),
not [this](javascript:alert).

## Tasks

| task | ndcg@10 |
| --- | ---: |
| watch | 0.3312 |
| a \\| b | 0.1 |

- first
- second <img src=x onerror=alert(1)>

1. one
2. two

> Offline figures compare models.

```text
polytask serve FOLDER
```
"""


@dataclass(frozen=True)
class World:
    """What the server knows; ``tasks`` are (name, kind), ``items`` and ``users`` map ids to what is shown of them."""

    tasks: tuple[tuple[str, str], ...]
    mix: str
    items: dict[str, dict[str, str]]
    users: dict[str, dict[str, str]]
    title: str | None = "title"
    token: str | None = None
    name: str = "movies-mmoe"
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.tasks]


def movies(count: int = 60) -> World:
    """Two tasks over made-up movies."""
    random, items = Random(5), {}
    for n in range(1, count + 1):
        title = f"The {ADJECTIVES[n % 8]} {NOUNS[(n // 8 + n) % 8]}"
        genres = "|".join(random.sample(GENRES, random.randint(1, 3)))
        items[str(n)] = {"title": title, "genres": genres, "year": str(random.randint(1951, 1998))}
    users = {
        str(n): {"age": str(20 + n % 40), "occupation": "writer" if n % 2 else "engineer"} for n in range(190, 230)
    }
    return World((("watch", "ranking"), ("rating", "regression")), "watch * rating ** 0.5", items, users)


def recommend(world: World, body: dict[str, Any]) -> dict[str, Any]:
    """The answer of /v1/recommend."""
    user, history = body.get("user_id"), body.get("history", [])
    mix = Mix.parse(body.get("mix", world.mix), world.names)
    seen = {*history, *(_seen(world, user) if body.get("exclude_seen", True) else ())}
    subject = user if user is not None else f"newcomer {sorted(history)}"
    scored = [(_score(world, mix, subject, item), item) for item in world.items if item not in seen]
    scored.sort(key=lambda pair: -pair[0])
    items = [
        {"item_id": item, "rank": rank, "score": score, "values": _values(world, subject, item)}
        | ({"display": world.items[item]} if body.get("display") else {})
        for rank, (score, item) in enumerate(scored[: body.get("k", 10)], start=1)
    ]
    return {"model_version": VERSION, "user_id": user, "cold_start": user is None, "mix": mix.text, "items": items}


def _values(world: World, subject: str, item: str) -> dict[str, float]:
    found = {}
    for name, kind in world.tasks:
        taste = Random(f"{subject} {item} {name}").random()
        chance = 0.05 + 0.9 * taste
        found[name] = {"ranking": 3 * log(chance / (1 - chance)), "binary": chance}.get(kind, 1 + 4 * taste)
    return found


def _score(world: World, mix: Mix, subject: str, item: str) -> float:
    return float(mix(_inputs(world, _values(world, subject, item))))


def _inputs(world: World, values: dict[str, float]) -> dict[str, float]:
    return {t: 1 / (1 + exp(-values[t])) if k == "ranking" else values[t] for t, k in world.tasks}


def _seen(world: World, user: str | None) -> list[str]:
    return [] if user is None else Random(f"seen {user}").sample(list(world.items), min(14, len(world.items) // 4))


def explain(world: World, body: dict[str, Any]) -> dict[str, Any]:
    """The answer of /v1/explain."""
    values, mix = _values(world, body["user_id"], body["item_id"]), Mix.parse(body["mix"], world.names)
    label = {"ranking": "rank score", "binary": "probability", "regression": "value"}
    tasks = [{"task": t, "kind": k, "raw": values[t], "value": values[t], "label": label[k]} for t, k in world.tasks]
    parts = [{"text": text, "part": part} for text, part in mix.parts(_inputs(world, values))]
    found = {"model_version": VERSION, "user_id": body["user_id"], "item_id": body["item_id"], "mix": mix.text}
    return found | {
        "score": _score(world, mix, body["user_id"], body["item_id"]),
        "parts": parts,
        "tasks": tasks,
        "rank": 2,
    }


def similar(world: World, body: dict[str, Any]) -> dict[str, Any]:
    """The answer of /v1/similar."""
    near = sorted((i for i in world.items if i != body["item_id"]), key=lambda i: Random(i + body["item_id"]).random())
    items = [
        {"item_id": i, "rank": n, "score": 1 - n / 10, "display": world.items[i]}
        for n, i in enumerate(near[: body["k"]], start=1)
    ]
    return {"model_version": VERSION, "item_id": body["item_id"], "items": items}


def search(world: World, body: dict[str, Any]) -> dict[str, Any]:
    """The answer of /v1/search."""
    every = world.users if body["side"] == "user" else world.items
    text = body["text"].lower()
    found = [{"id": i, "display": d} for i, d in every.items() if text in " ".join([i, *d.values()]).lower()]
    return {"model_version": VERSION, "matches": found[: body["limit"]]}


def history(world: World, body: dict[str, Any]) -> dict[str, Any]:
    """The answer of /v1/history."""
    items = [{"item_id": i, "display": world.items[i]} for i in _seen(world, body["user_id"])]
    return {"model_version": VERSION, "user_id": body["user_id"], "items": items}


def model(world: World) -> dict[str, Any]:
    """The answer of /v1/model, with mixes from one task's own order to the other's."""
    first, second, *rest = world.names
    points = []
    for n in range(11):
        share = n / 10
        mix = Mix.parse(
            {first: share, second: 1 - share} if "+" in world.mix else _product(first, second, n), world.names
        )
        scores = {first: 0.21 + 0.12 * share**0.6, second: 0.34 + 0.2 * (1 - share) ** 0.6, **dict.fromkeys(rest, 0.3)}
        scores = {t: s - 0.015 * (n in (2, 7)) for t, s in scores.items()}
        points.append({"mix": mix.text, "scores": scores, "front": n not in (2, 7), "chosen": mix.text == world.mix})
    tasks = [
        {"name": n, "kind": k, "range": [1, 5] if k == "regression" else None, "calibrated": k == "binary"}
        | {"metrics": {"valid": {"ndcg@10": 0.33, "auc": 0.91}, "test": {"ndcg@10": 0.3179, "mrr": None}}}
        for n, k in world.tasks
    ]
    kinds = ("positive transfer", "negative transfer", "equivalent", "inconclusive", "nothing shared")
    verdicts = [
        {
            "task": t,
            "verdict": v,
            "text": "ndcg@10 0.331 against 0.312 alone: +0.0190, 95 % interval +0.0080 to +0.0300",
        }
        for t, v in zip(world.names, kinds, strict=False)
    ]
    shown = {"title": world.title, "columns": ["genres", "year"]}
    counts = {"users": len(world.users), "items": len(world.items), "rows": {"train": 90_570, "valid": 4_715}}
    return {
        "model_version": VERSION, "name": world.name, "format": 1, "tasks": tasks, "mix": world.mix, "card": CARD,
        "mix_points": points, "mix_metrics": dict.fromkeys(world.names, "ndcg@10"), "counts": counts,
        "verdicts": verdicts, "display": shown, "context": [], "limits": {"k": 1000},
    }  # fmt: skip


def _product(first: str, second: str, n: int) -> str:
    written = [Mix.single(name).text for name in (first, second)]
    return f"{written[0]} ** {n / 5:g} * {written[1]} ** {2 - n / 5:g}"


ROUTES = {f"/v1/{f.__name__}": f for f in (recommend, explain, similar, search, history)}


def answer(world: World, path: str, body: dict[str, Any], authorization: str | None) -> Answer:
    """Status and body for a question to the API."""
    if world.token and authorization != f"Bearer {world.token}":
        return 401, _fault("unauthorized", "this server asks for a token")
    if path == "/v1/model":
        return 200, model(world)
    world.asked.append((path, body))
    try:
        return 200, ROUTES[path](world, body)
    except ConfigError as error:
        return 400, _fault("invalid_request", str(error))


def _fault(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "request_id": "r1"}}


@contextmanager
def serving(world: World) -> Iterator[str]:
    """The address of a server of ``world`` on the loopback interface."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name = "index.html" if self.path == "/" else self.path.removeprefix("/assets/")
            known = {p.name: p for p in EXPLORER.iterdir()}
            if name in known and (self.path == "/" or self.path.startswith("/assets/")):
                self.reply(200, known[name].read_bytes(), TYPES[known[name].suffix])
            else:
                self.ask({})

        def do_POST(self) -> None:
            self.ask(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def ask(self, body: dict[str, Any]) -> None:
            status, found = answer(world, self.path, body, self.headers["Authorization"])
            self.reply(status, json.dumps(found).encode(), "application/json")

        def reply(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            for name, text in (("Content-Type", kind), ("Content-Length", len(body))):
                self.send_header(name, str(text))
            self.send_header("Content-Security-Policy", POLICY)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: a test's output is what it asserts."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
