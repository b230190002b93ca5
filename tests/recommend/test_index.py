import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from polytask.errors import PolytaskError, StateError, TrainingError
from polytask.recommend.index import RECALL, Index
from polytask.recommend.lists import top_vectors

COUNT, WIDTH = 4000, 9
faiss = pytest.importorskip("faiss")


@pytest.fixture(scope="module")
def items() -> Tensor:
    """Vectors [I + 1, W] in clusters, the last number a popularity."""
    rng = np.random.default_rng(0)
    near = rng.normal(size=(80, WIDTH - 1))[rng.integers(80, size=COUNT + 1)]
    table = np.concatenate([near + rng.normal(0, 0.4, near.shape), rng.gumbel(0, 1, (COUNT + 1, 1))], axis=1)
    table[0] = 100  # the unknown item would be everybody's best
    return torch.from_numpy(table).float()


@pytest.fixture(scope="module")
def users() -> Tensor:
    """Vectors [U, W], the last number a 1."""
    rng = np.random.default_rng(1)
    return torch.from_numpy(np.concatenate([rng.normal(size=(150, WIDTH - 1)), np.ones((150, 1))], axis=1)).float()


@pytest.fixture(scope="module")
def index(items: Tensor, users: Tensor) -> Index:
    return Index.build(items, users, exact_below=1000)


@pytest.fixture(scope="module")
def seen(index: Index, users: Tensor) -> list[np.ndarray]:
    """Half of the best of each user, one item twice, and the unknown one."""
    best = index.search(users, 60)[0].numpy()
    return [np.append(own[:: 2 if n % 2 else 3], [own[0], 0]) for n, own in enumerate(best)]


def test_the_recall_stored_is_the_recall_measured(index: Index, users: Tensor) -> None:
    assert index.facts.lists > 0 and index.facts.users == len(users) and index.facts.at == 100
    assert index.facts.recall == index.recall(users) >= RECALL
    found, exact = index.search(users, 100)[0].tolist(), (users @ index.vectors[1:].T).topk(100).indices + 1
    shared = [len({*own} & {*best}) for own, best in zip(found, exact.tolist(), strict=True)]
    assert index.facts.recall == pytest.approx(sum(shared) / (100 * len(users)))


def test_no_more_lists_are_read_than_the_recall_needs(
    index: Index, items: Tensor, users: Tensor, tmp_path: Path
) -> None:
    index.save(tmp_path)
    facts = json.loads((tmp_path / "index.json").read_text("utf-8"))
    assert facts["probes"] > 4
    (tmp_path / "index.json").write_text(json.dumps({**facts, "probes": facts["probes"] // 2}), "utf-8")
    assert Index.load(tmp_path, items).recall(users) < RECALL


def test_scores_are_the_exact_products_best_first(index: Index, items: Tensor, users: Tensor) -> None:
    found, scores = index.search(users, 20)
    assert found.dtype == torch.int64 and scores.dtype == torch.float32 and found.min() > 0
    exact = (users[:, None].double() * items[found].double()).sum(dim=2)
    assert torch.equal(scores, exact.float())
    assert (scores.diff(dim=1) <= 0).all()
    assert torch.equal(index.search(users[5:6], 20)[1], scores[5:6])


def test_seen_items_are_left_out_and_nothing_else(
    index: Index, items: Tensor, users: Tensor, seen: list[np.ndarray]
) -> None:
    found = index.search(users, 20, excluded=seen)[0]
    assert all(not {*own} & {*left_out.tolist()} for own, left_out in zip(found.tolist(), seen, strict=True))
    rows = np.repeat(np.arange(len(seen)), [len(own) for own in seen])
    exact = top_vectors(users, items, 20, excluded=(torch.from_numpy(rows), torch.from_numpy(np.concatenate(seen))))[0]
    shared = [len({*own} & {*best}) for own, best in zip(found.tolist(), exact.tolist(), strict=True)]
    assert sum(shared) / exact.numel() >= RECALL - 0.01


def test_among_candidates_the_search_is_exact(index: Index, users: Tensor, seen: list[np.ndarray]) -> None:
    candidates = torch.tensor([0, *range(7, COUNT, 31), 7, 7])
    found, scores = index.search(users, 12, excluded=seen, candidates=candidates)
    for row, own in enumerate(seen):
        left = [i for i in candidates.unique().tolist() if i and i not in own]
        products = (users[row].double() * index.vectors[left].double()).sum(dim=1).float().tolist()
        expected = sorted(zip(products, left, strict=True), key=lambda pair: (-pair[0], pair[1]))[:12]
        assert found[row].tolist() == [item for _, item in expected]
        assert scores[row].tolist() == [product for product, _ in expected]


@pytest.mark.parametrize("k", [1500, COUNT + 50])
def test_a_long_list_holds_all_that_is_left(index: Index, users: Tensor, k: int) -> None:
    left_out = [np.arange(30, COUNT + 1), np.arange(500), np.zeros(0, np.int64)]
    found, scores = index.search(users[:3], k, excluded=left_out)
    for row, own in enumerate(left_out):
        left = len(np.setdiff1d(np.arange(1, COUNT + 1), own))
        assert (found[row] >= 0).sum() == len(found[row].unique()) - int(left < k) == min(k, left)
        assert torch.equal(found[row] < 0, scores[row] == -torch.inf)
    assert sorted(found[0, :29].tolist()) == list(range(1, 30))


def test_the_length_of_a_user_vector_changes_no_order(index: Index, users: Tensor) -> None:
    assert torch.equal(index.search(users * 1024, 30)[0], index.search(users, 30)[0])


def test_a_user_to_whom_all_items_are_equal_gets_the_first(index: Index, users: Tensor) -> None:
    found, scores = index.search(users[:2] * 0, 3)
    assert found.tolist() == [[1, 2, 3]] * 2 and scores.tolist() == [[0, 0, 0]] * 2


def test_nobody_asks_for_nothing(index: Index, users: Tensor) -> None:
    assert [t.shape for t in index.search(users[:0], 5)] == [(0, 5), (0, 5)]


def test_saved_and_loaded_it_answers_bit_for_bit_the_same(
    index: Index, items: Tensor, users: Tensor, seen: list[np.ndarray], tmp_path: Path
) -> None:
    index.save(tmp_path)
    loaded = Index.load(tmp_path, items)
    assert loaded.facts == index.facts
    before, after = (i.search(users, 25, excluded=seen) for i in (index, loaded))
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    loaded.save(tmp_path / "again")
    names = ["index.faiss", "index.json"]
    assert sorted(f.name for f in (tmp_path / "again").iterdir()) == names
    assert all((tmp_path / n).read_bytes() == (tmp_path / "again" / n).read_bytes() for n in names)


def test_building_is_reproducible_and_says_nothing(
    index: Index, items: Tensor, users: Tensor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("same", 0), ("other", 1)):
        Index.build(items, users, exact_below=1000, seed=seed).save(tmp_path / name)
    index.save(tmp_path)
    assert capfd.readouterr() == ("", "")
    content = (tmp_path / "index.faiss").read_bytes()
    assert content == (tmp_path / "same" / "index.faiss").read_bytes()
    assert content != (tmp_path / "other" / "index.faiss").read_bytes()


def test_a_catalogue_of_usual_size_is_searched_exactly_without_faiss(
    items: Tensor, users: Tensor, seen: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    built = Index.build(items, users)
    built.save(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["index.json"]
    loaded = Index.load(tmp_path, items)
    assert (loaded.facts.lists, loaded.facts.recall, loaded.recall(users)) == (0, 1.0, 1.0)
    found = loaded.search(users, 9, excluded=seen)[0]
    table = (users.double() @ items.double().T).numpy()
    for row, own in enumerate(seen):
        table[row, own] = -np.inf
    assert found.tolist() == np.argsort(-table, axis=1, kind="stable")[:, :9].tolist()


def test_a_missing_faiss_is_named_with_its_extra(
    index: Index, items: Tensor, users: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.save(tmp_path)
    monkeypatch.setitem(sys.modules, "faiss", None)
    for act in (lambda: Index.build(items, users, exact_below=1000), lambda: Index.load(tmp_path, items)):
        with pytest.raises(PolytaskError, match=r'needs faiss: pip install "polytask\[index\]"'):
            act()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has format 2, this version reads 1"),
        ({"items": COUNT - 1}, "is the index of another model"),
        ({"width": WIDTH + 1}, "is the index of another model"),
        ({"length": 1.0}, "is the index of another model"),
        ({"lists": "many"}, "index.json is damaged"),
        ({"probes": -1}, "index.json is damaged"),
        ({"color": 1}, "index.json is damaged"),
        ({"lists": 1 << 40}, "does not hold the index that index.json describes"),
        ({"lists": 20}, "does not hold the index that index.json describes"),
    ],
    ids=str,
)
def test_facts_that_do_not_fit_are_refused(
    index: Index, items: Tensor, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    index.save(tmp_path)
    facts = json.loads((tmp_path / "index.json").read_text("utf-8"))
    (tmp_path / "index.json").write_text(json.dumps({**facts, **changes}), "utf-8")
    with pytest.raises(StateError, match=message):
        Index.load(tmp_path, items)


@pytest.mark.parametrize("damage", ["short", "long", "gone", "zeros", "another kind", "fewer items"])
def test_a_file_of_lists_that_does_not_fit_is_refused(
    index: Index, items: Tensor, users: Tensor, tmp_path: Path, damage: str
) -> None:
    index.save(tmp_path)
    path = tmp_path / "index.faiss"
    content = path.read_bytes()
    path.unlink()
    if damage == "another kind":
        faiss.write_index(faiss.IndexFlatL2(WIDTH + 1), str(path))
    elif damage == "fewer items":
        Index.build(items[:-1], users, exact_below=1000).save(tmp_path / "other")
        (tmp_path / "other" / "index.faiss").rename(path)
    elif damage != "gone":
        path.write_bytes({"short": content[:-9], "long": content * 2, "zeros": bytes(len(content))}[damage])
    with pytest.raises(StateError, match=r"index.faiss does not hold the index that index.json describes"):
        Index.load(tmp_path, items)


def test_vectors_that_are_not_finite_are_refused(index: Index, items: Tensor, users: Tensor) -> None:
    bad = users.clone()
    bad[3, 0] = torch.nan
    with pytest.raises(PolytaskError, match="a vector of an item or a user is not finite"):
        Index.build(items, bad, exact_below=1000)
    with pytest.raises(TrainingError, match="not finite"):
        index.search(bad[3:4], 5)


def test_vectors_of_a_model_in_training_are_read_alike(index: Index, users: Tensor) -> None:
    assert torch.equal(index.search(users.clone().requires_grad_(), 5)[0], index.search(users, 5)[0])
