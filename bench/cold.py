"""Users the model was not trained on: ways of folding them in from half of their items, judged on the other half.

    python bench/cold.py [--folder runs/cold] > tables.md

10 % of the users of each data set are held out for choosing settings and 10 % for reporting; models are trained on the
others. A way's setting is the one with the best mean ndcg@10, over its models and over the newest 1, 2, 5 and 10 items
and all of the half, on the users for choosing; of what the package does, its default.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from polytask import TrainConfig, datasets, fit, rng, split
from polytask.bundle import Bundle
from polytask.data.history import Log
from polytask.data.table import Dataset, with_schema
from polytask.nn.design import Design
from polytask.nn.model import MultiTask
from polytask.nn.models import make_model
from polytask.recommend.cold import FoldIn
from polytask.recommend.scorer import Person
from polytask.schema import Field, Schema, Task

DATA = ("movielens-100k", "synthetic")
SHORT = TrainConfig(epochs=12, lr=4e-3, patience=2, probes=False)
WHOLE = TrainConfig(
    epochs=30, batch=118, lr=3e-3, schedule="cosine", patience=0, evaluate_every=30, probes=False
)  # as in movielens-best, shortened
METRICS = ("mrr", "ndcg@10", "rating mse")
FEW = (1, 2, 5, 10)
DEFAULT = {"map": "penalty 10", "in the slots, and map": "penalty 10, few 10"}


class Recipe(NamedTuple):
    """A model to fold users into."""

    design: Design
    head: str
    config: TrainConfig = SHORT
    fields: tuple[Field, ...] = ()


MODELS = {
    "factorize": Recipe(Design(), "dot"),
    "separate": Recipe(Design(share="separate"), "dot"),
    "shared_bottom": Recipe(Design(body="shared_bottom"), "tower"),
    "history_field": Recipe(Design(), "dot", fields=(Field("had", "history", length=50),)),
    "history": Recipe(Design(body="history"), "dot", WHOLE),
}


@dataclass(frozen=True, eq=False)
class People:
    """Held-out users: the ``items`` they come with, oldest first, and the ``later`` ones with their ``ratings``.

    Items ``left_out`` are no candidates.
    """

    items: list[np.ndarray]
    left_out: list[np.ndarray]
    later: list[np.ndarray]
    ratings: list[np.ndarray]

    def newest(self, count: int) -> "People":
        return replace(self, items=[items[-count:] for items in self.items])


@dataclass(frozen=True, eq=False)
class World:
    """A trained model and the held-out users of its data, by group."""

    bundle: Bundle
    groups: Mapping[str, People]

    @property
    def model(self) -> Any:
        return self.bundle.contents.model

    def fold(self, penalty: float = 10.0, few: float = 10.0) -> FoldIn:
        return FoldIn(self.bundle.scorer, self.bundle.contents.seen, penalty, few)

    def unknown(self, people: People, slots: bool = False) -> Person:
        """Nobody in particular, or with ``slots`` somebody whose history fields hold the items."""
        count = len(people.items)
        nobody, scorer = torch.zeros(count, dtype=torch.int64), self.bundle.scorer
        if not slots:
            return scorer.users(nobody)
        parts = []
        for items in people.items:
            had = torch.from_numpy(items)
            parts.append(scorer.users(nobody[:1], log=Log(torch.zeros_like(had), had, torch.arange(len(had)).double())))
        side = parts[0].side
        joined = replace(side, ids=torch.cat([p.side.ids for p in parts]))
        return Person(replace(joined, numbers=torch.cat([p.side.numbers for p in parts])))

    def judge(self, people: People, values: np.ndarray) -> np.ndarray:
        """Metrics [3, U] of predictions [T, U, I + 1]."""
        watch, rating = (self.bundle.tasks.index(t) for t in ("watch", "rating"))
        found = []
        for n, (had, later, given) in enumerate(zip(people.left_out, people.later, people.ratings, strict=True)):
            scores = values[watch, n].astype(np.float64)
            scores[had] = scores[0] = -np.inf
            place = np.empty(len(scores))
            place[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
            ranks = place[later]
            ideal = (1 / np.log2(np.arange(min(10, len(later))) + 2)).sum()
            gain = (1 / np.log2(1 + ranks[ranks <= 10])).sum() / ideal
            found.append([(1 / ranks).mean(), gain, np.square(values[rating, n, later] - given).mean()])
        return np.array(found).T


Way = Callable[[World, People], Person]


def no_items(world: World, people: People) -> Person:
    return world.unknown(people)


def native(world: World, people: People) -> Person:
    """The items where the model itself reads items: in slots, or as a whole history."""
    if isinstance(world.model, MultiTask):
        return world.unknown(people, slots=True)
    return replace(world.unknown(people), had=item_sets(people, world.bundle.scorer.width))


def pooled_map(world: World, people: People, penalty: float, few: float = 0.0, slots: bool = False) -> Person:
    starts = torch.tensor([0, *map(len, people.items)]).cumsum(dim=0)[:-1]
    items = torch.from_numpy(np.concatenate(people.items))
    return replace(world.unknown(people, slots=slots), rows=world.fold(penalty, few).predicted(items, starts))


def neighbors(world: World, people: People, count: int) -> Person:
    """The mean rows of the known users nearest by the cosine of the sets of items."""
    fold, seen = world.fold(), world.bundle.contents.seen
    users = np.unique(seen.user)
    known = torch.zeros(users.max() + 1, world.bundle.scorer.width)
    known[seen.user, seen.item] = 1.0
    known = known[users] / known[users].sum(dim=1, keepdim=True).sqrt()
    sets = item_sets(people, known.shape[1])
    nearest = torch.from_numpy(users)[(sets @ known.T).topk(count, dim=1).indices]
    return replace(world.unknown(people), rows={n: own[nearest].mean(dim=1) for n, own in fold._tables.items()})


def item_sets(people: People, width: int) -> Tensor:
    sets = torch.zeros(len(people.items), width)
    for n, items in enumerate(people.items):
        sets[n, items] = 1.0
    return sets


def ridge(world: World, people: People, unseen: float, penalty: float) -> Person:
    """min_u sum_{H} (1 - u q)^2 + unseen sum_all (u q)^2 + penalty |u|^2, in the scale of the known users' rows."""
    name, fold, seen = f"tables.{world.model.trunk(0)}.weight", world.fold(), world.bundle.contents.seen
    vectors = world.bundle.scorer.item_vectors("watch")[:, :-1].double()
    gram = unseen * vectors[1:].T @ vectors[1:] + penalty * torch.eye(vectors.shape[1])

    def solved(items: np.ndarray) -> Tensor:
        own = vectors[items]
        return torch.linalg.solve(gram + own.T @ own, own.sum(dim=0))

    users = np.unique(seen.user)[::4]
    known, rows = torch.stack([solved(seen.items(u)) for u in users.tolist()]), fold._tables[name][users].double()
    scale = (known * rows).sum() / known.square().sum()
    found = torch.stack([solved(items) for items in people.items]) * scale
    return replace(world.unknown(people), rows={name: found.float()})


def ways(world: World) -> dict[str, dict[str, Way]]:
    """By name, the settings of every way that fits a model."""
    if not isinstance(world.model, MultiTask):
        return {"read by the model": {"": native}}
    if any(f.kind == "history" for f in world.bundle.schema.fields):
        pairs = [*product((1.0, 100.0), (10.0,)), *product((10.0,), (0.0, 3.0, 10.0, 30.0))]
        both = {f"penalty {p:g}, few {f:g}": partial(pooled_map, penalty=p, few=f, slots=True) for p, f in pairs}
        return {"in the slots": {"": native}, "in the slots, and map": {**both}}
    penalties = (1.0, 10.0, 100.0, 1000.0)
    found: dict[str, dict[str, Way]] = {"map": {f"penalty {p:g}": partial(pooled_map, penalty=p) for p in penalties}}
    found["neighbors"] = {f"{n}": partial(neighbors, count=n) for n in (10, 30, 100)}
    if "watch" in world.bundle.scorer.dot:
        grid = product((0.03, 0.1), (10.0, 100.0, 1000.0))
        found["ridge"] = {f"w {w:g}, l2 {p:g}": partial(ridge, unseen=w, penalty=p) for w, p in grid}
    return found


def held_out(data: Dataset) -> dict[str, pl.Series]:
    users = data.interactions["user_id"].unique().sort()
    order, count = rng.generator(0, "cold users").permutation(len(users)), len(users) // 10
    return {"choose": users.gather(order[:count]), "report": users.gather(order[count : 2 * count])}


def made(name: str, model: str, folder: Path) -> World:
    """Train a model on the users who are not held out, unless its bundle lies in ``folder``."""
    data, recipe = datasets.load(name), MODELS[model]
    groups = held_out(data)
    if not (folder / f"{name}-{model}").is_dir():
        tasks = (
            Task("watch", "ranking", head=recipe.head, loss="bpr"),  # type: ignore[arg-type]
            Task("rating", "regression", label="rating", range=(1, 5)),
        )
        schema = Schema(user="user_id", item="item_id", time="timestamp", fields=recipe.fields, tasks=tasks)
        gone = pl.concat(list(groups.values())).implode()
        kept = data.interactions.filter(~pl.col("user_id").is_in(gone))
        parts = split(with_schema(replace(data, interactions=kept, users=None), schema), valid=0.05, test=0.0)
        run = fit(make_model(parts.train, recipe.design), parts.train, parts.valid, config=recipe.config)
        Bundle.save(folder / f"{name}-{model}", run)
    bundle = Bundle.load(folder / f"{name}-{model}")
    return World(bundle, {group: people(data, users, bundle) for group, users in groups.items()})


def people(data: Dataset, users: pl.Series, bundle: Bundle) -> People:
    found = People([], [], [], [])
    for number, user in enumerate(users):
        own = data.interactions.filter(pl.col("user_id") == user).sort("timestamp", maintain_order=True)
        item, rating = bundle.contents.encoder.index("item_id", own["item_id"]).numpy(), own["rating"].to_numpy()
        item, rating = item[item > 0], rating[item > 0]
        first = rng.generator(0, "cold halves", step=number).permutation(len(item)) < len(item) // 2
        found.items.append(item[first])
        found.left_out.append(item[first])
        found.later.append(item[~first])
        found.ratings.append(rating[~first])
    return found


def judged(world: World, whom: People, way: Way) -> np.ndarray:
    return world.judge(whom, world.bundle.scorer.grid(way(world, whom)))


def popular(world: World, whom: People) -> np.ndarray:
    """Metrics of the items by their number of training rows; the rating is not of its making."""
    counts = np.broadcast_to(world.bundle.contents.popularity.numpy(), (2, len(whom.items), world.bundle.scorer.width))
    found = world.judge(whom, counts.copy())
    found[2] = np.nan
    return found


def chosen(worlds: Mapping[tuple[str, str], World]) -> dict[str, str]:
    """For each way the setting with the best mean ndcg@10, on the users for choosing; prints the means."""
    told: dict[str, dict[str, dict[tuple[str, str], float]]] = {}
    for key, world in worlds.items():
        for name, settings in ways(world).items():
            for setting, way in settings.items():
                gains = [judged(world, p, way)[1].mean() for p in lengths(world.groups["choose"])]
                told.setdefault(name, {}).setdefault(setting, {})[key] = float(np.mean(gains))
    row("fold-in", *(f"{data} {model}" for data, model in worlds), "mean")
    row("---", *("---:" for _ in worlds), "---:")
    for name, settings in told.items():
        for setting, means in settings.items():
            each = (f"{means[key]:.3f}" if key in means else "" for key in worlds)
            row(f"{name} {setting}".strip(), *each, f"{np.mean(list(means.values())):.4f}")
    print()
    return {name: max(settings, key=lambda s: np.mean(list(settings[s].values()))) for name, settings in told.items()}


def lengths(people: People) -> list[People]:
    return [*map(people.newest, FEW), people]


def row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def cells(values: np.ndarray, base: np.ndarray) -> list[str]:
    found = []
    for own, other in zip(values, base, strict=True):
        gain = own - other
        half = 1.96 * gain.std(ddof=1) / len(gain) ** 0.5
        told = f" ({gain.mean() - half:+.3f} to {gain.mean() + half:+.3f})" if gain.any() else ""
        found.append("–" if np.isnan(own).any() else f"{own.mean():.3f}{told}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path("runs/cold"))
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    worlds = {(name, model): made(name, model, folder) for name, model in product(DATA, MODELS)}
    best = chosen(worlds) | DEFAULT
    row("data", "model", "fold-in", *METRICS)
    row("---", "---", "---", "---:", "---:", "---:")
    for (name, model), world in worlds.items():
        whom = world.groups["report"]
        base = judged(world, whom, no_items)
        found = {"nothing: unknown user": base, "most popular": popular(world, whom)}
        for way, settings in ways(world).items():
            found[f"{way} {best[way]}".strip()] = judged(world, whom, settings[best[way]])
        for way, values in found.items():
            row(name, model, way, *cells(values, base))
    print()
    row("data", "model", "fold-in", "0 items", *map(str, FEW), "half")
    row("---", "---", "---", *("---:" for _ in FEW), "---:", "---:")
    for (name, model), world in worlds.items():
        whom = world.groups["report"]
        nothing = f"{judged(world, whom, no_items)[1].mean():.3f}"
        for way, settings in ways(world).items():
            means = [judged(world, p, settings[best[way]])[1].mean() for p in lengths(whom)]
            row(name, model, way, nothing, *(f"{m:.3f}" for m in means))


if __name__ == "__main__":
    main()
