"""The index over a million items with popularity among their 33 numbers: answers a second and recall, one thread.

    python bench/index.py [--items 1000000] [--users 1000] [--seen 50]

Items lie around 2,000 centers; their 33rd number is a popularity (Gumbel, scale 0.5), beside which a user's is 1. Each
user has seen items, half of them among the best for that user, which no list may hold. The lists of 100 are compared
with the exact ones.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from polytask import rng
from polytask.recommend.index import Index

Found = tuple[Tensor, Tensor]


def world(items: int, users: int) -> tuple[Tensor, Tensor]:
    """Vectors of items [I + 1, 33] and users [U, 33]."""
    draw = rng.generator(0, "bench")
    centers = draw.normal(size=(2000, 32))

    def around(count: int) -> np.ndarray:
        near: np.ndarray = centers[draw.integers(2000, size=count)] + draw.normal(0, 0.5, (count, 32))
        return near / 32**0.25

    popularity = draw.gumbel(0, 0.5, (items + 1, 1))
    table = np.concatenate([around(items + 1), popularity], axis=1)
    people = np.concatenate([around(users), np.ones((users, 1))], axis=1)
    return torch.from_numpy(table).float(), torch.from_numpy(people).float()


def seen_items(index: Index, users: Tensor, count: int) -> list[np.ndarray]:
    """What each user has had: items [<= count], half of them from the user's best."""
    best = index.search(users, 4 * count)[0].numpy()
    draw, most = rng.generator(0, "bench/seen"), index.facts.items
    some = count // 2
    return [np.unique(np.append(draw.choice(b, some), draw.integers(1, most, count - some))) for b in best]


def report(name: str, exact: Tensor, search: Callable[[], Found]) -> None:
    started = time.perf_counter()
    found = search()[0]
    rate = len(found) / (time.perf_counter() - started)
    at = {k: (exact[: len(found), :k, None] == found[:, None, :k]).any(dim=2).double().mean() for k in (10, 100)}
    print(f"| {name} | {rate:,.0f} | {at[10]:.3f} | {at[100]:.3f} |", flush=True)


def one_by_one(index: Index, users: Tensor, seen: list[np.ndarray]) -> Found:
    found = [index.search(users[n : n + 1], 100, excluded=seen[n : n + 1]) for n in range(len(users))]
    return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--seen", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    items, everyone = world(options.items, 500 + options.users)
    known, users = everyone[:500], everyone[500:]  # the index is tuned on other users than it is measured with
    exact, index = Index.build(items, known, exact_below=options.items + 1), Index.build(items, known, exact_below=0)
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder))
        size = sum(f.stat().st_size for f in Path(folder).iterdir()) / 1e6
    facts = index.facts
    print(f"Built in {facts.seconds:.1f} s, {size:.0f} MB: reads {facts.probes} of {facts.lists} lists, ", end="")
    print(f"recall@100 {facts.recall:.3f} on {facts.users} users\n")
    seen = seen_items(index, users, options.seen)
    best = exact.search(users, 100, excluded=seen)[0]
    print("| search for 100 items, the seen ones left out | users/s | recall@10 | recall@100 |\n|---|---:|---:|---:|")
    report("exact, one by one", best, lambda: one_by_one(exact, users[:100], seen))
    report("exact, all at once", best, lambda: exact.search(users, 100, excluded=seen))
    report("index, one by one", best, lambda: one_by_one(index, users, seen))
    report("index, all at once", best, lambda: index.search(users, 100, excluded=seen))
