"""How many lists a second one worker serves, beside a route that answers a constant; and twenty reloads under load.

    python bench/serving.py [BUNDLE [BUNDLE]] [--seconds 5] [--connections 16]

Without a bundle one is made from generated data in the shape of MovieLens 100K (943 users, 1,682 items). The load comes
from ``wrk`` on the same machine if it is installed, else from a small generator that is itself the bottleneck. Every
request is about another user. Processor time per request is that of the server alone, so it holds on a busy machine.
"""

import argparse
import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import orjson

from polytask.bundle import Bundle

BARE = """
import sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
BODY = open(sys.argv[2], "rb").read()
async def answer(request): return Response(BODY, media_type="application/json")
app = Starlette(routes=[Route("/v1/recommend", answer, methods=["POST"])])
uvicorn.run(app, port=int(sys.argv[1]), log_level="error", access_log=False, lifespan="off")
"""
SERVE = """
import sys
from pathlib import Path
from polytask.serve import Limits, Options, serve
if __name__ == "__main__":
    serve(Options(Path(sys.argv[2]), port=int(sys.argv[1]), limits=Limits(warm=60.0)))
"""
LUA = """
local ids = {{{ids}}}
local n = 0
wrk.headers["Content-Type"] = "application/json"
function request()
  n = n + 1
  return wrk.format("POST", nil, nil, '{{"user_id":' .. ids[n % #ids + 1] .. ',"k":10}}')
end
"""
Figures = tuple[float, float, float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="*", type=Path, help="one, and another for the reloads")
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=16)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        given = asked.bundle or [generated(folder / name, seed) for seed, name in enumerate(("first", "second"))]
        first, second = given[0], given[-1]
        current = folder / "current"
        current.symlink_to(first.resolve())
        load = (folder, first, asked.connections, asked.seconds)
        ours = measured(SERVE, str(current), *load)
        answer = one(SERVE, str(current))
        (folder / "answer").write_bytes(answer)
        bare = measured(BARE, str(folder / "answer"), *load)
        print("| | requests/s | p50 ms | p99 ms | processor µs a request |\n| --- | --- | --- | --- | --- |")
        for name, found in (("/v1/recommend, k = 10", ours), ("a constant from Starlette", bare)):
            print(f"| {name} | {found[0]:,.0f} | {found[1]:.2f} | {found[2]:.2f} | {found[3]:.0f} |")
        print(f"| ratio | {ours[0] / bare[0]:.2f} | | | {bare[3] / ours[3]:.2f} |\n")
        reloads(current, [first, second], asked.connections)


def generated(path: Path, seed: int) -> Path:
    """A bundle of a model that was trained for one epoch."""
    import polytask as pt
    from polytask.data.synthetic import synthetic

    parts = pt.split(synthetic(seed=1), valid=0.1, test=0.1, seed=0)
    model = pt.MultiTask.build(parts.train, body="shared_bottom", dim=16, tower=(32,))
    config = pt.TrainConfig(epochs=1, batch=4096, seed=seed)
    return Bundle.save(path, pt.fit(model, parts.train, parts.valid, config=config))


def measured(code: str, argument: str, folder: Path, bundle: Path, connections: int, seconds: int) -> Figures:
    """Requests a second, median and 99th percentile in ms, and the server's processor time in µs a request."""
    users = Bundle.load(bundle).contents.encoder
    known = users.vocabularies[str(users.schema.user)].to_list()[:5000]
    server, port = started(code, argument)
    try:
        fire(port, known, connections, 1, folder)
        before = spent(server.pid)
        count, rate, half, most = fire(port, known, connections, seconds, folder)
        return rate, half, most, (spent(server.pid) - before) / count * 1e6
    finally:
        stopped(server)


def fire(port: int, users: list[str], connections: int, seconds: int, folder: Path) -> Figures:
    """Load for some seconds: requests, requests a second, median and 99th percentile in ms."""
    if shutil.which("wrk") is None:
        return asyncio.run(generator(port, users, connections, seconds))
    script = folder / "load.lua"
    quoted = ",".join("[==[" + orjson.dumps(u).decode() + "]==]" for u in users)
    script.write_text(LUA.format(ids=quoted), "utf-8")
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script)]
    out = subprocess.run(
        [*command, f"http://127.0.0.1:{port}/v1/recommend"], capture_output=True, text=True, check=True
    )
    if "Non-2xx" in out.stdout:
        raise SystemExit(out.stdout)
    words = out.stdout.split()
    count, rate = float(words[words.index("requests") - 1]), float(words[words.index("Requests/sec:") + 1])
    return count, rate, milliseconds(words[words.index("50%") + 1]), milliseconds(words[words.index("99%") + 1])


def milliseconds(text: str) -> float:
    """A time as wrk writes it."""
    for unit, factor in (("us", 1e-3), ("ms", 1.0), ("s", 1e3)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    raise ValueError(text)


async def generator(port: int, users: list[str], connections: int, seconds: int) -> Figures:
    """The load without wrk."""
    end, times = time.perf_counter() + seconds, []

    async def one(start: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        number = start
        while (began := time.perf_counter()) < end:
            writer.write(question(users[number % len(users)]))
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(head.decode())
            await reader.readexactly(int(head.lower().split(b"content-length:")[1].split()[0]))
            times.append(time.perf_counter() - began)
            number += connections
        writer.close()

    await asyncio.gather(*(one(n) for n in range(connections)))
    times.sort()
    return len(times), len(times) / seconds, 1e3 * times[len(times) // 2], 1e3 * times[int(len(times) * 0.99)]


def question(user: str) -> bytes:
    body = orjson.dumps({"user_id": user, "k": 10})
    lines = ["POST /v1/recommend HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def reloads(current: Path, bundles: list[Path], connections: int) -> None:
    """Twenty reloads while clients ask: what failed, and whether an answer mixed two bundles."""
    expected = {}
    for path in bundles:
        bundle = Bundle.load(path)
        expected[bundle.version] = {u: bundle.recommend(u)[str(bundle.schema.item)].to_list() for u in users_of(bundle)}
    people = list(next(iter(expected.values())))
    server, port = started(SERVE, str(current))
    faults: list[str] = []
    times: list[float] = []
    versions: dict[str, int] = {}
    done = threading.Event()

    def client(number: int) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        while not done.is_set():
            user = people[number % len(people)]
            began = time.perf_counter()
            try:
                told = ask(connection, user)
            except Exception as error:
                faults.append(f"failed: {type(error).__name__}")
                connection = HTTPConnection("127.0.0.1", port, timeout=20)
                continue
            times.append(time.perf_counter() - began)
            versions[told["model_version"]] = versions.get(told["model_version"], 0) + 1
            if [i["item_id"] for i in told["items"]] != expected[told["model_version"]][user]:
                faults.append("mixed")
            number += connections
            time.sleep(0.01)  # a load that a client in Python can keep up, beside the loading

    clients = [threading.Thread(target=client, args=(n,)) for n in range(connections)]
    for thread in clients:
        thread.start()
    took = []
    for number in range(20):
        fresh = current.with_name("fresh")
        fresh.symlink_to(bundles[(number + 1) % 2].resolve())
        fresh.rename(current)
        loads, began = metric(port, "polytask_reloads_total"), time.perf_counter()
        server.send_signal(signal.SIGHUP)
        while metric(port, "polytask_reloads_total") == loads:
            time.sleep(0.05)
        took.append(time.perf_counter() - began)
    done.set()
    for thread in clients:
        thread.join()
    stopped(server)
    times.sort()
    print("| reloads | requests | failed | mixed | versions answering | p99 ms | seconds a reload |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    failed, mixed = sum(f != "mixed" for f in faults), faults.count("mixed")
    late = 1e3 * times[int(0.99 * len(times))]
    print(f"| 20 | {len(times):,} | {failed} | {mixed} | {len(versions)} | {late:.1f} | {sum(took) / len(took):.1f} |")


def users_of(bundle: Bundle) -> list[str]:
    return [str(u) for u in bundle.contents.encoder.vocabularies[str(bundle.schema.user)][:200]]


def ask(connection: HTTPConnection, user: str) -> dict[str, Any]:
    body = orjson.dumps({"user_id": user, "k": 10})
    connection.request("POST", "/v1/recommend", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise RuntimeError(content)
    found: dict[str, Any] = orjson.loads(content)
    return found


def metric(port: int, name: str) -> float:
    """The sum of a metric's series."""
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def one(code: str, argument: str) -> bytes:
    """One answer, as the body of the constant."""
    server, port = started(code, argument)
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("POST", "/v1/recommend", b"{}", {"Content-Type": "application/json"})
    found = connection.getresponse().read()
    connection.close()
    stopped(server)
    return found


def started(code: str, argument: str) -> tuple[subprocess.Popen[bytes], int]:
    """A server that answers, and its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", code, str(port), argument]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    for _ in range(1200):
        time.sleep(0.1)
        try:
            connection = HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("POST", "/v1/recommend", b"{}", {"Content-Type": "application/json"})
            if connection.getresponse().status == 200:
                return server, port
        except OSError:
            pass
        finally:
            connection.close()
    raise SystemExit("the server does not start")


def stopped(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    server.wait(30)


def spent(process: int) -> float:
    """Seconds of processor time of a process (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
