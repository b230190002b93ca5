from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polytask import rng
from polytask.data.batch import Batch
from polytask.errors import ConfigError
from polytask.loss import Observed
from polytask.nn.bodies import BODIES
from polytask.nn.design import Design
from polytask.nn.heads import TowerHead
from polytask.nn.model import MultiTask
from polytask.schema import Field, Input, Schema, Task

PLAIN = sorted(n for n, b in BODIES.items() if not getattr(b, "both", False) and not getattr(b, "sequential", False))
WATCH = Task("watch", "ranking", head="dot")
RATING = Task("rating", "regression", label="rating")
CLICK = Task("click", "binary", label="clicked")


@dataclass
class Stub:
    """As much of a training part as a model is built from."""

    schema: Schema
    sizes: dict[str, int]
    mean: list[float]

    @property
    def inputs(self) -> tuple[Input, ...]:
        return tuple(Input(f.name, f.kind, f.side, self.sizes.get(f.name, 1)) for f in self.schema.inputs)

    def observed(self, task: int) -> Observed:
        return Observed(torch.tensor([self.mean[task]]), torch.tensor([torch.nan]), torch.zeros(0))


def part(
    tasks: Sequence[Task] = (WATCH, RATING),
    fields: Sequence[Field] = (),
    means: Sequence[float] | None = None,
    **sizes: int,
) -> Stub:
    schema = Schema(tuple(tasks), tuple(fields), user="user", item="item")
    return Stub(schema, {"user": 7, "item": 9} | sizes, list(means or [3.5] * len(tasks)))


def build(stub: Stub | None = None, **options: Any) -> MultiTask:
    return MultiTask.build(stub or part(), **{"dim": 4, "tower": (5,)} | options)


def randomized(model: MultiTask) -> MultiTask:
    """The model with every parameter, the zeros of a start included, set at random."""
    draw = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draw))
    return model


def batch(model: MultiTask, rows: int = 6, negatives: int = 0, seed: int = 0) -> Batch:
    """Random rows that fit the model."""
    draw = torch.Generator().manual_seed(seed)

    def some(inputs: Sequence[Input], *shape: int) -> tuple[Tensor, Tensor]:
        ids = [torch.randint(0, i.size, shape, generator=draw) for i in inputs]
        numbers = [torch.randn(shape, generator=draw) if i.kind == "number" else torch.ones(shape) for i in inputs]
        return torch.stack(ids, dim=-1), torch.stack(numbers, dim=-1)

    items = [i for i in model.inputs if i.side == "item"]
    labels = torch.ones(rows, len(model.heads))
    return Batch(*some(model.inputs, rows), labels, *some(items, rows, negatives))


def swapped(model: MultiTask, rows: Batch, number: int) -> Batch:
    """The rows with the item fields of their ``number``-th negative, and no negatives."""
    at = model.shape.side("item")
    ids, numbers = rows.ids.clone(), rows.numbers.clone()
    ids[:, at], numbers[:, at] = rows.negative_ids[:, number], rows.negative_numbers[:, number]
    return Batch(ids, numbers, rows.labels, rows.negative_ids[:, :0], rows.negative_numbers[:, :0])


def count(model: MultiTask) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("share", "published", "tables"), [("shared", 92_898, 1), ("separate", 176_898, 2)])
def test_the_exercise_has_its_published_number_of_parameters(share: Any, published: int, tables: int) -> None:
    stub = part(user=943 + 1, item=1682 + 1)
    found = MultiTask.build(stub, body="factorize", dim=32, tower=(64,), share=share)
    unknown = 2 * 32 * tables + 2  # a row for the unknown user and item in each set of tables, and their biases
    assert count(found) == published + unknown


def test_embeddings_start_from_a_normal_of_one_over_dim_and_the_unknown_at_zero() -> None:
    model = build(part(user=3001, item=2001), dim=16)
    tables = model.get_parameter("tables.0.weight")
    offset = 3001
    assert tables[0].abs().sum() == 0 == tables[offset].abs().sum()
    known = torch.cat([tables[1:offset], tables[offset + 1 :]])
    assert (known.abs().sum(dim=1) > 0).all()
    assert known.mean().item() == pytest.approx(0, abs=5 / 16 / known.numel() ** 0.5)
    assert known.std().item() == pytest.approx(1 / 16, rel=0.02)
    assert (known.abs() > 3 / 16).double().mean().item() == pytest.approx(0.0027, abs=0.001)
    assert model.get_parameter("heads.0.bias.weight").abs().sum() == 0


def test_layers_start_within_one_over_the_root_of_their_width() -> None:
    model = build(dim=32, tower=(64,))
    for name, width in (("0", 96), ("2", 64)):
        weight = model.get_parameter(f"heads.1.network.{name}.weight")
        assert weight.abs().max() <= width**-0.5
        assert weight.std().item() == pytest.approx(width**-0.5 / 3**0.5, rel=0.2)


def test_separate_trunks_start_as_the_shared_one_and_the_seed_decides() -> None:
    model, shared = build(share="separate"), build(share="shared")
    for number in range(2):
        assert torch.equal(model.get_parameter(f"tables.{number}.weight"), shared.get_parameter("tables.0.weight"))
    before = {n: p.clone() for n, p in model.named_parameters()}
    model.initialize(lambda name: rng.generator(0, f"init/{name}"))
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    model.initialize(lambda name: rng.generator(1, f"init/{name}"))
    assert not torch.equal(model.get_parameter("tables.0.weight"), before["tables.0.weight"])


def gradients(model: MultiTask, task: int) -> dict[str, float]:
    """Size of the gradient of one task's logits by parameter."""
    model.zero_grad(set_to_none=True)
    model(batch(model, negatives=2))[task].square().sum().backward()
    return {n: 0.0 if p.grad is None else p.grad.abs().sum().item() for n, p in model.named_parameters()}


@pytest.mark.parametrize("body", PLAIN)
def test_separate_tasks_share_nothing(body: str) -> None:
    model = randomized(build(share="separate", body=body))
    assert len({p.data_ptr() for p in model.parameters()}) == len(list(model.parameters()))
    assert model.shared() == []
    names = {id(p): n for n, p in model.named_parameters()}
    for number, task in enumerate(("watch", "rating")):
        reached = {n for n, g in gradients(model, number).items() if g > 0}
        own = {names[id(p)] for p in model.own(task)}
        assert f"tables.{number}.weight" in reached and reached <= own
    assert not {id(p) for p in model.own("watch")} & {id(p) for p in model.own("rating")}


@pytest.mark.parametrize("body", PLAIN)
def test_shared_tasks_read_the_same_tables(body: str) -> None:
    model = randomized(build(body=body))
    assert len(model.tables) == len(model.trunks) == 1
    for number in (0, 1):
        assert gradients(model, number)["tables.0.weight"] > 0
    assert any(p is model.get_parameter("tables.0.weight") for p in model.shared())
    every = [*model.shared(), *model.own("watch"), *model.own("rating")]
    assert sorted(map(id, every)) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize("head", ["tower", "dot"])
def test_values_start_at_the_mean_and_probabilities_at_the_log_odds(head: Any) -> None:
    tasks = [WATCH, replace(RATING, head=head), replace(CLICK, head=head)]
    model = build(part(tasks, means=[1.0, 3.5, 0.2]))
    for table in model.tables:
        table.weight.data.zero_()  # type: ignore[union-attr, operator]
    for module in (m for head_ in model.heads for m in head_.modules() if isinstance(m, torch.nn.Linear)):
        module.weight.data.zero_()
        if module.out_features != 1:
            module.bias.data.zero_()
    _, rating, click = model(batch(model))
    assert rating.tolist() == pytest.approx([3.5] * 6)
    assert torch.sigmoid(click).tolist() == pytest.approx([0.2] * 6)


def test_without_a_start_at_the_mean_the_last_bias_is_as_the_others() -> None:
    design = Design(dim=4, tower=(5,), start_at_mean=False)
    model = MultiTask(part(), design)
    assert abs(model.get_parameter("heads.1.network.2.bias").item()) <= 5**-0.5
    dot = MultiTask(part([WATCH, replace(RATING, head="dot")]), design)
    assert dot.get_parameter("heads.1.base").item() == 0


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_a_label_that_never_varies_starts_at_a_finite_logit(mean: float) -> None:
    model = build(part([CLICK], means=[mean]))
    assert torch.isfinite(model(batch(model))[0]).all()


def exercise(model: MultiTask, share: str, user: Any, item: Any) -> tuple[Any, Any]:
    """p_ij and the predicted rating of the published exercise, in numpy, from the model's own parameters."""
    values = {n: p.detach().numpy().astype(np.float64) for n, p in model.named_parameters()}
    users = model.inputs[0].size
    ranking = values["tables.0.weight"]
    rating = values["tables.1.weight"] if share == "separate" else ranking
    bias = values["heads.0.bias.weight"][:, 0]
    p = (ranking[user] * ranking[users + item]).sum(axis=-1) + bias[user] + bias[users + item]
    u, q = rating[user], rating[users + item]
    hidden = np.concatenate([u, q, u * q], axis=-1) @ values["heads.1.network.0.weight"].T
    hidden = np.maximum(hidden + values["heads.1.network.0.bias"], 0)
    return p, (hidden @ values["heads.1.network.2.weight"].T + values["heads.1.network.2.bias"])[..., 0]


@pytest.mark.parametrize("share", ["shared", "separate"])
def test_forward_is_the_published_exercise(share: Any) -> None:
    model = randomized(build(share=share))
    rows = batch(model, rows=50, negatives=3)
    watch, rating = (x.detach().numpy() for x in model(rows))
    user, item = rows.ids[:, 0].numpy(), rows.ids[:, 1].numpy()
    p, r = exercise(model, share, user, item)
    assert watch.shape == (50, 4) and rating.shape == (50,)
    np.testing.assert_allclose(watch[:, 0], p, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(rating, r, rtol=1e-4, atol=1e-4)
    negatives, _ = exercise(model, share, user.repeat(3).reshape(50, 3), rows.negative_ids[..., 0].numpy())
    np.testing.assert_allclose(watch[:, 1:], negatives, rtol=1e-4, atol=1e-4)


FIELDS = (
    Field("age", "number", "user"),
    Field("genre", "category", "item"),
    Field("price", "number", "item"),
    Field("device", "category", "context"),
    Field("hour", "number", "context"),
)


@pytest.mark.parametrize("share", ["shared", "separate"])
@pytest.mark.parametrize("body", PLAIN)
@pytest.mark.parametrize("head", ["tower", "dot"])
def test_a_negative_scores_as_its_item_would_in_the_row(head: Any, body: str, share: Any) -> None:
    stub = part([replace(WATCH, head=head), RATING], FIELDS, genre=4, device=3)
    model = randomized(build(stub, body=body, share=share))
    rows = batch(model, rows=5, negatives=3)
    found = model(rows)[0]
    assert found.shape == (5, 4)
    alone = model(Batch(*rows[:3], rows.negative_ids[:, :0], rows.negative_numbers[:, :0]))[0]
    torch.testing.assert_close(found[:, 0], alone, rtol=1e-4, atol=1e-4)
    for number in range(3):
        torch.testing.assert_close(found[:, 1 + number], model(swapped(model, rows, number))[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("share", ["shared", "separate"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_dot_head_can_predict_a_value_beside_a_ranking(bias: bool, share: Any) -> None:
    tasks = [WATCH, replace(RATING, head="dot", bias=bias)]
    model = randomized(build(part(tasks), share=share))
    rows = batch(model, rows=5, negatives=2)
    watch, rating = model(rows)
    assert watch.shape == (5, 3) and rating.shape == (5,)
    values = dict(model.named_parameters())
    table = values["tables.1.weight" if share == "separate" else "tables.0.weight"]
    u, q = table[rows.ids[:, 0]], table[7 + rows.ids[:, 1]]
    expected = (u * q).sum(dim=1) + values["heads.1.base"]
    if bias:
        first = values["heads.1.bias.weight"][:, 0]
        expected = expected + first[rows.ids[:, 0]] + first[7 + rows.ids[:, 1]]
    torch.testing.assert_close(rating, expected)


@pytest.mark.parametrize("bias", [True, False])
def test_vectors_order_items_as_forward_does(bias: bool) -> None:
    stub = part([replace(WATCH, bias=bias), RATING], FIELDS[:3], genre=4)
    model = randomized(build(stub))
    every = batch(model, rows=9)
    catalogue = (torch.cat([torch.arange(9)[:, None], every.ids[:, 3:]], dim=1), every.numbers[:, 2:])
    users = batch(model, rows=7, seed=1)
    people = (torch.cat([torch.arange(7)[:, None], users.ids[:, 1:2]], dim=1), users.numbers[:, :2])
    found = model.user_vectors("watch", *people) @ model.item_vectors("watch", *catalogue).T
    ids, numbers = (
        torch.cat([a.repeat_interleave(9, dim=0), b.repeat(7, 1)], dim=1)
        for a, b in zip(people, catalogue, strict=True)
    )
    rows = Batch(ids, numbers, torch.ones(63, 2), torch.zeros(63, 0, 3).long(), torch.zeros(63, 0, 3))
    logits = model(rows)[0].view(7, 9)
    assert found.shape == (7, 9)
    torch.testing.assert_close(found - found[:, :1], logits - logits[:, :1], rtol=1e-3, atol=1e-3)


def test_a_number_scales_its_vector() -> None:
    model = randomized(build(part([RATING], [Field("hour", "number")]), body="shared_bottom", options={"layers": (6,)}))
    plain = batch(model, rows=4)
    numbers = plain.numbers.clone()
    numbers[:, 2] = 0
    nothing = model(plain._replace(numbers=numbers))[0]
    weight = model.get_parameter("tables.0.weight")
    weight.data[7 + 9] = 0  # the one row of the number field
    torch.testing.assert_close(model(plain)[0], nothing)


def test_a_context_field_is_read_by_towers_and_not_by_a_dot_head() -> None:
    model = randomized(build(part(fields=[Field("device")], device=3)))
    rows = batch(model, rows=4)
    other = rows._replace(ids=torch.cat([rows.ids[:, :2], (rows.ids[:, 2:] + 1) % 3], dim=1))
    (watch, rating), (watch_other, rating_other) = model(rows), model(other)
    assert torch.equal(watch, watch_other)
    assert (rating != rating_other).all()


def test_shared_bottom_is_one_network_under_two_towers() -> None:
    tasks = [RATING, CLICK]
    model = build(part(tasks, FIELDS, genre=4, device=3), body="shared_bottom", options={"layers": (12, 6)})
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if n.endswith("weight")}
    assert shapes == {
        "tables.0.weight": (7 + 1 + 9 + 4 + 1 + 3 + 1, 4),
        "trunks.0.body.network.0.weight": (12, 7 * 4),
        "trunks.0.body.network.2.weight": (6, 12),
        "heads.0.network.0.weight": (5, 6),
        "heads.0.network.2.weight": (1, 5),
        "heads.1.network.0.weight": (5, 6),
        "heads.1.network.2.weight": (1, 5),
    }
    assert model.trunks[0].body(torch.randn(3, 7, 4))[0].min() >= 0  # a ReLU ends it


@pytest.mark.parametrize("share", ["shared", "separate"])
@pytest.mark.parametrize("body", PLAIN)
def test_a_batch_of_one(body: str, share: Any) -> None:
    model = randomized(build(part([WATCH, RATING, CLICK]), body=body, share=share))
    rows = batch(model, rows=8, negatives=2)
    whole = model(rows)
    for at in range(8):
        alone = model(Batch(*(t[at : at + 1] for t in rows)))
        assert [a.shape for a in alone] == [(1, 3), (1,), (1,)]
        for a, b in zip(alone, whole, strict=True):
            torch.testing.assert_close(a[0], b[at], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"body": "factorise"}, "body 'factorise' is unknown. Did you mean 'factorize'"),
        ({"share": "seperate"}, "share 'seperate' is unknown. Did you mean 'separate'"),
        ({"dim": 0}, "dim = 0 must be at least 1"),
        (
            {"body": "shared_bottom", "options": {"layer": (8,)}},
            "option of body 'shared_bottom' 'layer' is unknown. Did you mean",
        ),
        ({"options": {"layers": (8,)}}, "option of body 'factorize' 'layers' is unknown"),
    ],
)
def test_a_wrong_name_is_told_the_near_one(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(**options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_factorize_needs_a_user_and_an_item() -> None:
    stub = Stub(Schema((CLICK,), (Field("device"),)), {"device": 3}, [0.5])
    with pytest.raises(ConfigError, match="needs a user and an item column; use 'shared_bottom'"):
        build(stub)
    model = randomized(build(stub, body="shared_bottom"))
    rows = Batch(
        torch.tensor([[1], [2]]), torch.ones(2, 1), torch.ones(2, 1), torch.zeros(2, 0, 0).long(), torch.zeros(2, 0, 0)
    )
    assert model(rows)[0].shape == (2,)


def test_a_tower_has_no_vectors() -> None:
    with pytest.raises(ConfigError, match="task 'rating' has a tower head"):
        build().user_vectors("rating", torch.zeros(1, 1).long(), torch.ones(1, 1))


def test_towers_without_hidden_layers_are_linear() -> None:
    model = build(tower=())
    assert isinstance(model.heads[1], TowerHead)
    assert [tuple(p.shape) for p in model.heads[1].parameters()] == [(1, 12), (1,)]


def test_the_rows_looked_up_are_those_that_get_a_gradient() -> None:
    model = randomized(build(part(fields=[Field("device")], device=3)))
    rows = batch(model, rows=3, negatives=2)
    looked_up = model.lookups(rows)
    model(rows)[0].sum().backward()
    for name, index in looked_up.items():
        grad = model.get_parameter(name).grad
        assert grad is not None
        untouched = torch.ones(len(grad), dtype=torch.bool).index_fill(0, index.flatten(), False)
        assert grad[untouched].abs().sum() == 0
    assert looked_up["tables.0.weight"].shape == (3, 3 + 2)
    given = model(rows, {n: model.get_parameter(n)[i] for n, i in looked_up.items()})
    assert all(torch.equal(a, b) for a, b in zip(given, model(rows), strict=True))
