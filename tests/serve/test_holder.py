"""A bundle is replaced under load only by one that has proved itself, and no answer mixes two."""

import asyncio
import json
import shutil
from functools import partial
from pathlib import Path

import orjson
import pytest
from speaking import HOSTS, QUICK, loaded
from test_app import send

from polytask.bundle import Bundle
from polytask.serve.app import App, make_app
from polytask.serve.holder import fingerprint
from polytask.serve.snapshot import Snapshot

DAMAGES = ("a flipped bit", "another format", "no manifest", "a file less", "nothing", "no bundle at all")


def linked(folder: Path, target: Path) -> Path:
    """The link ``current`` in a folder, pointed to a bundle in one step."""
    fresh = folder / "fresh"
    fresh.symlink_to(target)
    return fresh.rename(folder / "current")


def damaged(source: Path, target: Path, how: str) -> Path:
    """A bundle that must be refused."""
    if how == "nothing":
        return target
    shutil.copytree(source, target)
    manifest, weights = target / "manifest.json", target / "model.safetensors"
    if how == "a flipped bit":
        content = bytearray(weights.read_bytes())
        content[-3] ^= 1
        weights.write_bytes(content)
    elif how == "another format":
        manifest.write_text(json.dumps(json.loads(manifest.read_text("utf-8")) | {"format": 99}), "utf-8")
    elif how == "no manifest":
        manifest.unlink()
    elif how == "a file less":
        (target / "seen.parquet").unlink()
    else:
        manifest.write_text("[]", "utf-8")
    return target


@pytest.mark.parametrize("how", DAMAGES)
def test_a_bad_bundle_is_refused_with_a_reason_and_the_old_one_goes_on(
    bundles: tuple[Path, Path], tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    current = linked(tmp_path, bundles[0])
    app = loaded(current)
    version = app.holder.current.version  # type: ignore[union-attr]
    linked(tmp_path, damaged(bundles[1], tmp_path / "bad", how))
    assert asyncio.run(app.holder.reload()) is False
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines[-1]["event"] == "refused" and lines[-1]["reason"] and lines[-1]["serving"] == version
    answer = asyncio.run(send(app, "/v1/recommend", {"user_id": "u1"})).json()
    assert answer["model_version"] == version
    assert 'outcome="refused",worker="1"} 1.0' in asyncio.run(send(app, "/metrics", None)).text


def test_a_good_bundle_takes_over(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    app = loaded(linked(tmp_path, bundles[0]))
    before = app.holder.current.version  # type: ignore[union-attr]
    linked(tmp_path, bundles[1])
    assert asyncio.run(app.holder.reload())
    assert app.holder.current.version == Bundle.load(bundles[1]).version != before  # type: ignore[union-attr]


def test_a_fault_while_loading_is_no_end(capsys: pytest.CaptureFixture[str]) -> None:
    def load() -> Snapshot:
        raise MemoryError("a secret")

    app = make_app(load, QUICK, HOSTS)
    assert asyncio.run(app.holder.reload()) is False
    assert "MemoryError" in app.holder.reason and "secret" not in capsys.readouterr().err


def test_a_bundle_serves_from_a_folder_that_cannot_be_written(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "read-only"
    shutil.copytree(bundles[0], target)
    for path in (*target.iterdir(), target):
        path.chmod(0o500 if path.is_dir() else 0o400)
    before = {p.name: p.stat().st_mtime_ns for p in (*target.iterdir(), target)}
    assert asyncio.run(send(loaded(target), "/v1/recommend", {"user_id": "u1"})).status_code == 200
    assert before == {p.name: p.stat().st_mtime_ns for p in (*target.iterdir(), target)}
    target.chmod(0o700)


def test_a_change_is_seen_and_a_folder_being_replaced_is_none(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    current = linked(tmp_path, bundles[0])
    first = fingerprint(current)
    assert first == fingerprint(current) is not None
    linked(tmp_path, bundles[1])
    assert fingerprint(current) != first
    linked(tmp_path, tmp_path / "not-yet")
    assert fingerprint(current) is None


def test_watching_loads_what_is_new_and_tries_what_is_bad_once(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    current = linked(tmp_path, bundles[0])
    app, loads = loaded(current), []
    load = app.holder._load
    app.holder._load = lambda: loads.append(1) or load()  # type: ignore[func-returns-value]
    bad = damaged(bundles[0], tmp_path / "bad", "a flipped bit")

    async def main() -> None:
        watching = asyncio.create_task(app.holder.watch(current, 0.02))
        await asyncio.sleep(0.1)
        assert loads == []
        for target, expected in ((bad, bundles[0]), (bundles[1], bundles[1])):
            before = len(loads)
            linked(tmp_path, target)
            while len(loads) == before:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            assert len(loads) == before + 1
            assert app.holder.current.version == Bundle.load(expected).version  # type: ignore[union-attr]
        watching.cancel()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_twenty_reloads_under_load_fail_no_request_and_mix_nothing(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    """Every answer is, to the last bit, what the bundle of its version says; every fourth bundle is a bad one."""
    current = linked(tmp_path, bundles[0])
    app = make_app(partial(Snapshot.load, current, QUICK), QUICK, HOSTS)
    expected = {b.version: listed(b) for b in map(Bundle.load, bundles)}
    bad = [damaged(bundles[1], tmp_path / f"bad {n}", how) for n, how in enumerate(DAMAGES[:4])]
    seen: list[str] = []

    async def asking(done: asyncio.Event) -> None:
        while not done.is_set():
            await asyncio.sleep(0.005)
            answer = await send(app, "/v1/recommend", {"user_id": "u3", "k": 5})
            assert answer.status_code == 200
            told = orjson.loads(answer.content)
            assert [(i["item_id"], i["score"]) for i in told["items"]] == expected[told["model_version"]]
            seen.append(told["model_version"])

    async def main() -> None:
        done = asyncio.Event()
        await app.holder.reload()
        askers = [asyncio.create_task(asking(done)) for _ in range(4)]
        for number in range(20):
            linked(tmp_path, bad[number // 4 % 4] if number % 4 == 3 else bundles[number % 2])
            assert await app.holder.reload() is (number % 4 != 3)
        done.set()
        await asyncio.gather(*askers)

    asyncio.run(main())
    assert set(seen) == expected.keys() and len(seen) > 40


def listed(bundle: Bundle) -> list[tuple[str, float]]:
    """Ids and scores of one list."""
    frame = bundle.recommend("u3", 5)
    return list(zip(frame["item"], frame["score"], strict=True))


def test_the_two_bundles_differ(bundles: tuple[Path, Path]) -> None:
    first, second = map(Bundle.load, bundles)
    assert listed(first) != listed(second)


def test_an_app_that_stops_is_not_ready_and_answers_still(bundles: tuple[Path, Path]) -> None:
    app: App = loaded(bundles[0])
    app.holder.draining = True
    answer = asyncio.run(send(app, "/health/ready", None))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopping")
    told = asyncio.run(send(app, "/v1/recommend", {"user_id": "u1"}))
    assert (told.status_code, told.headers["connection"]) == (200, "close")
