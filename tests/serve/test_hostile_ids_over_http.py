"""Ids of any characters, from a table through training and the bundle over a socket and back, byte for byte."""

import json
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from speaking import loaded, running
from test_hostile_ids import ids, trained, written

from polytask.serve.settings import Limits


def test_more_than_two_thousand_hostile_ids_are_answered_as_they_were_asked(tmp_path: Path) -> None:
    names = ids()
    asked = [name for name in names if len(name) <= 1024]  # more is refused
    assert len(asked) > 2000
    bundle = trained(written(names, tmp_path, "csv"), tmp_path / "bundle")
    limits = Limits(warm=0)
    with running(loaded(tmp_path / "bundle", limits), limits) as client:
        connection = HTTPConnection("127.0.0.1", client.port, timeout=20)

        def ask(path: str, body: dict[str, Any]) -> dict[str, Any]:
            connection.request(
                "POST", path, json.dumps(body), {"content-type": "application/json", "host": "localhost"}
            )
            answer = connection.getresponse()
            told = json.loads(answer.read())
            assert answer.status == 200, (body, told)
            return dict(told)

        for name in asked:
            told = ask("/v1/recommend", {"user_id": name, "k": 1, "candidates": [name], "exclude_seen": False})
            assert (told["user_id"], [i["item_id"] for i in told["items"]], told["cold_start"]) == (name, [name], False)
        for name in asked[::20]:
            had = ask("/v1/history", {"user_id": name, "limit": 50})["items"]
            assert sorted(i["item_id"] for i in had) == sorted(bundle.history(name)["item"])
            shown = ask("/v1/search", {"side": "item", "text": name, "limit": 1})["matches"]
            assert shown == [{"id": name, "display": {"kind": name}}]
            (row,) = ask("/v1/score", {"rows": [{"user_id": name, "item_id": name}]})["rows"]
            assert (row["user_id"], row["item_id"], row["cold_start"]) == (name, name, False)
        connection.close()
