"""What there is without a library: the exercise in plain PyTorch, torch.mm, SciPy."""

import time
from collections.abc import Callable, Iterator

import exercise
import numpy as np
import quality
import torch
from case import Case, Found, SkippedError
from timing import intervals, repeated

BLOCK = 1 << 24  # scores held at once: 64 MiB


def _exercise(case: Case) -> tuple[exercise.Net, Callable[[], float], np.ndarray, np.ndarray]:
    """The network, what trains it for an epoch, and the rows of train and test."""
    if case.device != "cpu":
        raise SkippedError(f"not measured on {case.device}")
    train, test = (np.load(case.folder / f"{name}.npy") for name in ("train", "test"))
    users, items = (int(max(train[:, k].max(), test[:, k].max())) + 1 for k in (0, 1))
    torch.manual_seed(case.seed)
    net, random = exercise.Net(users, items), np.random.RandomState(case.seed)
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    return net, lambda: exercise.train_epoch(net, adam, train, items, random), train, test


@torch.no_grad()
def reference(case: Case) -> Found:
    """Workload A."""
    net, epoch, train, test = _exercise(case)
    times = []
    for _ in range(case.size["epochs"]):
        with torch.enable_grad():
            epoch()
        times.append(time.perf_counter())
    predicted = net(torch.from_numpy(test[:, 0]), torch.from_numpy(test[:, 1]))[1]
    scores = net.user.weight @ net.item.weight.T + net.of_item.weight.T
    return {
        "samples_per_second": len(train) / intervals(times),
        "mse": quality.mse(predicted.numpy(), test[:, 2]),
        "mrr": quality.mrr(scores.numpy(), train, test),
    }


def comparison(case: Case) -> Found:
    """An epoch with its evaluation, user by user."""
    net, epoch, train, test = _exercise(case)
    users, items = net.user.num_embeddings, net.item.num_embeddings
    seen, held_out = ([rows[rows[:, 0] == user, 1] for user in range(users)] for rows in (train, test))
    times = []
    for _ in range(min(4, case.size["epochs"])):
        epoch()
        exercise.evaluate(net, seen, held_out, test, items)
        times.append(time.perf_counter())
    return {"seconds_per_run_epoch": intervals(times)}


def _vectors(case: Case) -> list[torch.Tensor]:
    if case.device != "cpu":
        raise SkippedError(f"not measured on {case.device}")
    return [torch.from_numpy(np.load(case.folder / f"{n}.npy")) for n in ("users", "items", "held_out", "seen")]


def scores(case: Case) -> Found:
    """The product that writes all scores, into memory that is there already."""
    users, items, *_ = _vectors(case)
    out = torch.empty(len(users), len(items))
    return {"seconds": repeated(lambda: torch.mm(users, items.T, out=out))}


def counted(case: Case) -> Found:
    """Ranks by counting what is scored higher than each held-out item."""
    users, items, held_out, seen = _vectors(case)
    size = max(1, BLOCK // len(items))

    def ranks() -> torch.Tensor:
        found = []
        for first in range(0, len(users), size):
            block = users[first : first + size] @ items.T
            own, out = (p[(p[:, 0] >= first) & (p[:, 0] < first + size)] for p in (held_out, seen))
            block[out[:, 0] - first, out[:, 1]] = -torch.inf
            target = block[own[:, 0] - first, own[:, 1]]
            found += [1 + (block[r] > t).sum() for r, t in zip((own[:, 0] - first).tolist(), target, strict=True)]
        return torch.stack(found)

    return {"seconds": repeated(ranks), "mrr": float((1 / ranks().double()).mean())}


def scipy_ranks(case: Case) -> Found:
    """``scipy.stats.rankdata`` of every user's scores."""
    from scipy.stats import rankdata

    users, items, held_out, seen = (t.numpy() for t in _vectors(case))
    own, out = ([pairs[pairs[:, 0] == u, 1] for u in range(len(users))] for pairs in (held_out, seen))

    def ranks() -> np.ndarray:
        found = []
        for user, wanted, left_out in zip(users, own, out, strict=True):
            line = -(items @ user)
            line[left_out] = np.inf
            found.append(rankdata(line)[wanted])
        return np.concatenate(found)

    return {"seconds": repeated(ranks), "mrr": float((1 / ranks()).mean())}


def top_ten(case: Case) -> Found:
    """A product in blocks of users, and ``topk``."""
    users, items, *_ = _vectors(case)

    def best() -> Iterator[torch.Tensor]:
        for block in torch.split(users, max(1, BLOCK // len(items))):
            yield (block @ items.T).topk(10).values

    seconds = repeated(lambda: list(best()))
    return {"queries_per_second": len(users) / seconds, "score": float(torch.cat(list(best())).mean())}
