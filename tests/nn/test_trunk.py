"""Between the tables and the losses: pooling, blocks, bias towers, conditions, and logits of many items."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from polytask.config import Config, parse
from polytask.data.batch import Batch, Feed, Part
from polytask.data.split import Split, split
from polytask.data.table import read_dataset
from polytask.errors import ConfigError
from polytask.evaluate import evaluate, predict, ranks_of
from polytask.gradients import Programs
from polytask.nn.blocks import BLOCKS
from polytask.nn.bodies import BODIES
from polytask.nn.design import Design
from polytask.nn.heads import BiasTower
from polytask.nn.model import MultiTask
from polytask.nn.pooling import Attention, Pooling
from polytask.replicas import Stack
from polytask.run import TrainConfig
from polytask.schema import Field, Input, Schema, Task
from polytask.train import fit

PLAIN = partial(Programs, trace=False)
WATCH = Task("watch", "ranking")
DOT = Task("watch", "ranking", head="dot")
STARS = Task("stars", "regression", label="rating")
CLICK = Task("click", "binary", label="clicked")
FIELDS = (
    Field("genre", "categories", side="item", length=3),
    Field("price", "number", side="item"),
    Field("past", "history", length=4),
    Field("device"),
)
CONFIG = TrainConfig(epochs=2, batch=64, lr=0.02, patience=0)


@pytest.fixture(autouse=True)
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps in their plain form: tracing takes longer than these trainings, and is tested elsewhere."""
    monkeypatch.setattr("polytask.train.Programs", partial(Programs, trace=False))


def frame(rows: int = 300, seed: int = 0) -> pl.DataFrame:
    draw = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user": [f"u{k}" for k in draw.integers(0, 15, rows)],
            "item": [f"i{k}" for k in draw.integers(0, 25, rows)],
            "time": draw.integers(0, 400, rows),
            "rating": draw.integers(1, 6, rows).astype(float),
            "clicked": draw.integers(0, 2, rows),
            "carted": draw.integers(0, 2, rows),
            "bought": draw.integers(0, 2, rows),
            "device": draw.choice(list("abc"), rows),
            "place": draw.integers(1, 5, rows),
        }
    )


ITEMS = pl.DataFrame(
    {"item": [f"i{k}" for k in range(25)], "genre": ["x|y", "y", "x|y|z", None, "z"] * 5, "price": range(25)}
)


def cut(tasks: Sequence[Task], *fields: Field, table: pl.DataFrame | None = None) -> Split:
    schema = Schema(tuple(tasks), fields, user="user", item="item", time="time")
    sides = {"items": ITEMS} if any(f.side == "item" for f in fields) else {}
    return split(read_dataset(frame() if table is None else table, schema, **sides), "temporal", valid=0, test=0.2)


def build(part: Part, **design: Any) -> MultiTask:
    """A model whose every parameter, the zeros of a start included, is random."""
    model = MultiTask(part, Design(**{"body": "shared_bottom", "dim": 4, "tower": (5,)} | design))
    draw = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.copy_(0.5 * torch.randn(parameter.shape, generator=draw))
    return model


def batch(part: Part, size: int = 32, **options: Any) -> Batch:
    """One batch [B, ...] of training rows."""
    return Batch(*(t[0] for t in next(Feed([part], [0], size, "uniform", **options).epoch(1))))


def slots(model: MultiTask, name: str) -> slice:
    """Where the slots of a field stand."""
    names = [i.name for i in model.inputs for _ in range(i.slots)]
    return slice(names.index(name), names.index(name) + names.count(name))


# Pooling.


def test_slots_become_fields_by_their_kind() -> None:
    inputs = [
        Input("user", "category", "user", 3),
        Input("past", "history", "user", 0, 2, "item"),
        Input("item", "category", "item", 4),
        Input("tags", "categories", "context", 5, 3),
        Input("price", "number", "context", 1),
    ]
    x = torch.arange(2 * 8 * 2.0).view(2, 8, 2)
    found = Pooling(inputs, 2)(x, torch.ones(2, 8))
    expected = [x[:, 0], x[:, 1] + x[:, 2], x[:, 3], x[:, 4:7].sum(dim=1), x[:, 7]]
    assert torch.equal(found, torch.stack(expected, dim=1))
    plain = Pooling([inputs[0], inputs[2]], 2)
    assert plain(x[:, :2], torch.ones(2, 2)) is not None and not list(plain.parameters())


def test_attention_is_a_softmax_over_the_items_that_are_there() -> None:
    attention = Attention(4)
    draw = torch.Generator().manual_seed(0)
    item, history = torch.randn(5, 4, generator=draw), torch.randn(5, 6, 4, generator=draw)
    present = torch.rand(5, 6, generator=draw) < 0.6
    present[0], present[1] = False, True
    found = attention(item, history, present)
    for row in range(5):
        own = history[row][present[row]]
        shares = torch.softmax(own @ (attention.query.weight @ item[row]) / 2, dim=0)  # sqrt(dim) = 2
        torch.testing.assert_close(found[row], shares @ own)
    assert not found[0].any()


def test_a_field_that_attends_asks_with_the_id_of_the_rows_item() -> None:
    inputs = [
        Input("user", "category", "user", 3),
        Input("past", "history", "user", 0, 3, "item", "attention"),
        Input("item", "category", "item", 4),
        Input("genre", "categories", "item", 5, 2),
    ]
    pooling = Pooling(inputs, 4)
    x = torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(0))
    numbers = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 0.5, 0.5]).repeat(5, 1)
    x = x * numbers[..., None]
    found = pooling(x, numbers)
    expected = pooling.attention["1"](x[:, 4], x[:, 1:4], numbers[:, 1:4] > 0)
    assert torch.equal(found[:, 1], expected) and expected.std(dim=0).min() > 0
    assert torch.equal(found[:, [0, 2]], x[:, [0, 4]])


def attending(tasks: Sequence[Task] = (WATCH, STARS)) -> tuple[Part, MultiTask]:
    fields = (*FIELDS[:2], Field("past", "history", length=6, pool="attention"), FIELDS[3])
    part = cut(tasks, *fields).train
    return part, build(part)


def test_absent_items_and_their_order_do_not_matter_to_attention() -> None:
    part, model = attending()
    rows = batch(part)
    before, at = model(rows), slots(model, "past")
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0)) + at.start
    ids, numbers = rows.ids.clone(), rows.numbers.clone()
    ids[:, at], numbers[:, at] = ids[:, order], numbers[:, order]
    ids[:, at] = torch.where(numbers[:, at] == 0, 7, ids[:, at])  # whatever stands in an empty slot
    assert (numbers[:, at] == 0).any() and not torch.equal(ids, rows.ids)
    for a, b in zip(before, model(rows._replace(ids=ids, numbers=numbers)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    nothing = rows.numbers.clone()
    nothing[:, at] = 0
    assert not torch.allclose(model(rows._replace(numbers=nothing))[1], before[1])


def swapped(model: MultiTask, rows: Batch, number: int) -> Batch:
    """The rows with the item slots of their ``number``-th negative."""
    ids, numbers = rows.ids.clone(), rows.numbers.clone()
    ids[:, model.item_slots] = rows.negative_ids[:, number]
    numbers[:, model.item_slots] = rows.negative_numbers[:, number]
    return Batch.bare(ids, numbers)


@pytest.mark.parametrize("share", ["shared", "separate"])
def test_attention_asks_with_the_item_of_the_negative(share: Any) -> None:
    part, _ = attending((Task("watch", "ranking", negatives=3), STARS))
    model = build(part, share=share)
    rows = batch(part)
    found = model(rows)[0]
    assert found.shape == (32, 4)
    for number in range(3):
        torch.testing.assert_close(found[:, 1 + number], model(swapped(model, rows, number))[0], rtol=1e-4, atol=1e-4)
    of_item = [n for n, _ in model.named_parameters() if "pooling.attention" in n]
    assert len(of_item) == len(model.trunks)


def test_a_dot_head_cannot_attend() -> None:
    with pytest.raises(ConfigError) as caught:
        build(cut((DOT, STARS), Field("past", "history", pool="attention")).train)
    message = str(caught.value)
    assert "task 'watch'" in message and "cannot attend to an item; pool by mean" in message and "\n" not in message


@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_a_body_that_reads_a_sequence_gets_the_embeddings_of_the_items(pool: Any) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Sequential(torch.nn.Module):
        sequential, width = True, 2

        def __init__(self, shape: Any) -> None:
            super().__init__()
            self.tasks = shape.tasks

        def forward(self, x: Tensor, history: Tensor, there: Tensor) -> list[Tensor]:
            seen.append((history, there))
            return [x[:, 0, :2]] * self.tasks

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BODIES, "sequence", Sequential)
        part = cut((STARS,), FIELDS[3], Field("past", "history", length=4, pool=pool)).train
        model, rows = build(part, body="sequence"), batch(part, 64)
        model(rows)
        with pytest.raises(ConfigError, match='reads a history; list a feature of kind = "history"'):
            build(cut((STARS,)).train, body="sequence")
    ((history, there),) = seen
    at = slots(model, "past")
    offset = model.get_buffer("tables.0.offsets")[at]
    expected = model.get_parameter("tables.0.weight")[rows.ids[:, at] + offset]
    assert there.any() and not there.all() and torch.equal(there, rows.numbers[:, at] > 0)
    torch.testing.assert_close(history[there], expected[there])
    assert not history[~there].any()


# Position bias.

SHOWN = Task("click", "binary", label="clicked", bias_fields=("place",))


def test_a_bias_tower_reads_its_fields_alone_and_adds_nothing_where_they_are_hidden() -> None:
    tower = BiasTower([1, 3], 2)
    x = torch.randn(5, 4, 2, generator=torch.Generator().manual_seed(0))
    x[2, [1, 3]] = 0
    linear, output = tower.hidden[0], tower.output.weight[0]
    assert isinstance(linear, torch.nn.Linear)
    before = torch.cat([x[:, 1], x[:, 3]], dim=1) @ linear.weight.T + linear.bias
    expected = (before.clamp(min=0) - linear.bias.clamp(min=0)) @ output
    torch.testing.assert_close(tower(x), expected)
    assert tower(x)[2] == 0 and (tower(x)[[0, 1, 3, 4]] != 0).all()


@pytest.mark.parametrize("share", ["shared", "separate", "both"])
@pytest.mark.parametrize("kind", ["category", "number"])
def test_fields_of_the_display_reach_the_tower_in_training_and_nothing_else(share: Any, kind: Any) -> None:
    part = cut((STARS, SHOWN), Field("place", kind), *FIELDS).train
    model = build(part, share=share, body="stem" if share == "both" else "shared_bottom")
    rows, at = batch(part), slots(model, "place")
    ids, numbers = rows.ids.clone(), rows.numbers.clone()
    ids[:, at], numbers[:, at] = (ids[:, at] + 1) % 4 if kind == "category" else 0, numbers[:, at] + (kind == "number")
    other = rows._replace(ids=ids, numbers=numbers)
    model.train()
    (stars, click), (stars_other, click_other) = model(rows), model(other)
    seen = numbers[:, at.start] != 0  # in the others the place is hidden
    assert torch.equal(stars, stars_other) and torch.equal(click == click_other, ~seen) and seen.sum() > 20
    model.eval()
    assert torch.equal(model.values(rows), model.values(other))
    assert model.trunks[0].body is not None and model.trunks[0].fields == len(model.inputs) - 1
    model.train().zero_grad()
    model(rows)[1].sum().backward()
    tables = [t.weight.grad for t in model.tables]
    own = {"shared": 0, "separate": 1, "both": 1}[share]
    first = int(model.get_buffer("tables.0.offsets")[at][0])
    assert [g is not None and bool(g[first : first + 5].any()) for g in tables] == [
        n == own for n in range(len(tables))
    ]
    assert all(p.grad is not None and p.grad.any() for p in model.bias_towers["1"].parameters())
    assert {id(p) for p in model.bias_towers.parameters()} <= {id(p) for p in model.own("click")}


def shown(rows: int = 6000, seed: int = 0) -> pl.DataFrame:
    """Clicks by taste and by place; the good items are shown at the top, so that their place explains them."""
    draw = np.random.default_rng(seed)
    item = draw.integers(0, 20, rows)
    taste = np.linspace(-1.5, 1.5, 20)[item]
    place = np.clip(np.round(2.5 - taste + draw.normal(0, 1, rows)), 1, 4).astype(int)
    logit = taste - 1.2 * (place - 2.5) - 1
    clicked = draw.random(rows) < 1 / (1 + np.exp(-logit))
    return pl.DataFrame(
        {
            "user": [f"u{k}" for k in draw.integers(0, 10, rows)],
            "item": [f"i{k:02}" for k in item],
            "place": place,
            "clicked": clicked.astype(int),
            "time": np.arange(rows),
        }
    )


def of_items(task: Task, *fields: Field) -> Tensor:
    """The served logit of each of the 20 items, in the order of their taste."""
    parts = cut((task,), *fields, table=shown())
    model = MultiTask.build(parts.train, body="shared_bottom", dim=4, tower=(), options={"layers": [8]})
    fit(model, parts.train, config=TrainConfig(epochs=12, batch=256, lr=0.01))
    items = torch.arange(1, 21)
    rows = Batch.bare(*parts.train.fields(torch.ones_like(items), items, None))
    return torch.logit(model.eval().values(rows)[:, 0].detach()) if fields or task.bias_fields else torch.zeros(20)


def test_what_the_place_explains_is_left_out_of_the_served_score() -> None:
    taste = torch.linspace(-1.5, 1.5, 20)

    def slope(found: Tensor) -> float:
        return float((found @ taste) / (taste @ taste))

    plain = slope(of_items(CLICK, Field("user", buckets=2)))
    served = slope(of_items(SHOWN, Field("place"), Field("user", buckets=2)))
    assert plain > 1.5  # an item gets the credit of its place: 1 by taste, 1.2 a place by the display
    assert served == pytest.approx(1.0, abs=0.25)


def test_served_probabilities_are_as_high_as_the_share_of_clicks() -> None:
    parts = cut((SHOWN,), Field("place"), Field("user", buckets=2), table=shown())
    model = MultiTask.build(parts.train, body="shared_bottom", dim=4, tower=(), options={"layers": [8]})
    fit(model, parts.train, config=TrainConfig(epochs=12, batch=256, lr=0.01))
    share = parts.train.labels.mean().item()  # about 0.35
    assert predict(model, parts.train).mean().item() == pytest.approx(share, abs=0.03)


def test_after_training_a_model_predicts_without_its_tower() -> None:
    parts = cut((SHOWN, STARS), Field("place"))
    model = build(parts.train)
    fit(model, parts.train, config=CONFIG)
    assert parts.test is not None
    found = predict(model, parts.test)
    assert torch.equal(found, predict(model.eval(), parts.test))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task("watch", "ranking", bias_fields=("place",)), "task 'watch'"),
        (Task("stars", "regression", label="rating", loss="quantile", bias_fields=("place",)), "task 'stars'"),
    ],
)
def test_a_task_whose_logits_have_no_place_takes_no_bias_fields(task: Task, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(cut((task,), Field("place")).train)
    assert message in str(caught.value) and "bias_fields" in str(caught.value) and "\n" not in str(caught.value)


# Conditions.

CHAIN = (
    Task("buy", "binary", label="bought", given="cart", loss="entire_space"),
    CLICK,
    Task("cart", "binary", label="carted", given="click", loss="entire_space"),
)


def test_a_condition_is_known_along_the_whole_chain() -> None:
    table = frame().with_columns(
        clicked=pl.when(pl.int_range(300) % 7 == 0).then(None).otherwise(pl.col("clicked")),
        carted=pl.when(pl.int_range(300) % 5 == 0).then(None).otherwise(pl.col("carted")),
    )
    part = cut(CHAIN, table=table).train
    model, rows = build(part), batch(part, 128)
    logits = model(rows)
    buy, click, cart = model.contexts(logits, rows)
    log = [torch.nn.functional.logsigmoid(z) for z in logits]
    assert click.given is None and click.given_label is None
    torch.testing.assert_close(cart.given, log[1])
    torch.testing.assert_close(buy.given, log[1] + log[2])
    clicked, carted = rows.labels[:, 1], rows.labels[:, 2]
    np.testing.assert_equal(cart.given_label.numpy(), clicked.numpy())
    expected = torch.where(clicked == 0, 0.0, carted)  # what was not clicked is in no cart, whatever is written
    np.testing.assert_equal(buy.given_label.numpy(), expected.numpy())
    assert expected.isnan().any() and clicked.isnan().any() and (clicked == 0).any()
    values = model.values(Batch.bare(rows.ids, rows.numbers))
    torch.testing.assert_close(values, torch.sigmoid(torch.stack(logits, dim=1)))


def test_what_a_loss_is_fitted_on_knows_whether_the_condition_held() -> None:
    part = cut(CHAIN).train
    clicked, carted, bought = (part.labels[:, n] for n in (1, 2, 0))
    assert part.observed(1).given_label is None
    assert part.observed(2).held.mean == pytest.approx(carted[clicked == 1].mean().item())
    both = (clicked == 1) & (carted == 1)
    assert part.observed(0).held.mean == pytest.approx(bought[both].mean().item())


def test_the_conditions_of_a_chain_learn_from_the_last_of_it() -> None:
    part = cut(CHAIN).train
    model, rows = build(part), batch(part, 128)
    context = model.contexts(logits := model(rows), rows)[0]
    loss = model.losses[0](logits[0], model.losses[0].target(rows.labels[:, 0], context), context)
    heads = [next(h.parameters()) for h in model.heads]
    grads = torch.autograd.grad(loss.sum(), heads)
    assert all(g.abs().sum() > 0 for g in grads)


# Logits of many items.


def crossed(loss: str, share: Any = "shared", bias: bool = True, **options: Any) -> tuple[Part, MultiTask]:
    task = Task("watch", "ranking", head="dot", loss=loss, bias=bias)
    part = cut((STARS, task), *FIELDS).train
    return part, build(part, share=share, **options)


def brute(model: MultiTask, rows: Batch, ids: Tensor, numbers: Tensor) -> Tensor:
    """Scores [B, I] of every row's user with every item, and the first-order term of the user."""
    at = model.user_slots
    users = model.user_vectors("watch", rows.ids[:, at], rows.numbers[:, at])
    head = model.heads[1]
    own = 0 if head.bias is None else head.bias.weight[rows.ids[:, 0]]  # type: ignore[union-attr, index]
    return users @ model.item_vectors("watch", ids, numbers).T + own


@pytest.mark.parametrize("share", ["shared", "separate"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", ["in_batch_softmax", "full_softmax"])
def test_logits_of_many_items_are_products_of_vectors(loss: str, bias: bool, share: Any) -> None:
    part, model = crossed(loss, share, bias)
    rows = batch(part, catalogue=model.every_item)
    items = part.encoder.items
    assert items is not None and model.every_item == (loss == "full_softmax")
    at = model.item_slots
    own = (rows.ids[:, at], rows.numbers[:, at])
    expected = brute(model, rows, *((items.ids, items.numbers) if loss == "full_softmax" else own))
    found = model(rows)[1]
    assert found.shape == (32, 26 if loss == "full_softmax" else 32)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    model.eval()
    plain = model(rows)[1]  # outside training a row has one item
    torch.testing.assert_close(plain[:, 0], brute(model, rows, *own).diagonal(), rtol=1e-4, atol=1e-4)


def test_tasks_with_fewer_negatives_than_the_neediest_see_as_many_items() -> None:
    tasks = [Task(f"t{n}", "ranking", head="dot", loss="softmax", negatives=n) for n in (1, 4)]
    part = cut(tasks).train
    model, rows = build(part), batch(part)
    logits = model(rows)
    for z, context, count in zip(logits, model.contexts(logits, rows), (2, 5), strict=True):
        assert z.shape == (32, count)
        assert context.items is not None and torch.equal(context.items, rows.items[:, :count])
    Stack([model], [0.1], programs=PLAIN).step(Batch(*(t[None] for t in rows)), torch.ones(1, 2))


# Tables of a task's own beside shared ones.


def test_own_tables_stand_beside_shared_ones() -> None:
    part = cut((WATCH, STARS), *FIELDS).train
    model = build(part, body="stem", share="both")
    assert len(model.tables) == 3 and len(model.trunks) == 1
    rows = batch(part)
    before = model(rows)
    for task, name in enumerate(("watch", "stars")):
        assert any(p is model.tables[task].weight for p in model.own(name))
    assert any(p is model.tables[2].weight for p in model.shared())
    every = [*model.shared(), *model.own("watch"), *model.own("stars")]
    assert sorted(map(id, every)) == sorted(map(id, model.parameters()))
    for task in (0, 1):  # its own tables and the shared ones get its gradient, the other's are read alone
        model.zero_grad(set_to_none=True)
        model(rows)[task].square().sum().backward()
        moved = [t.weight.grad is not None and bool(t.weight.grad.any()) for t in model.tables]
        assert moved == [n in (task, 2) for n in range(3)]
    for number in range(3):
        saved = model.tables[number].weight.data.clone()
        model.tables[number].weight.data += 0.1
        assert not torch.equal(model(rows)[1], before[1])
        model.tables[number].weight.data.copy_(saved)
    start = MultiTask(part, model.design)
    assert not torch.equal(start.tables[0].weight, start.tables[1].weight)


def test_a_negative_is_looked_up_in_every_table() -> None:
    part = cut((WATCH, STARS), *FIELDS).train
    model = build(part, body="stem", share="both")
    rows = batch(part)
    assert all(r.shape == (32, 11 + 5) for r in model.lookups(rows).values())
    found = model(rows)[0]
    torch.testing.assert_close(found[:, 1], model(swapped(model, rows, 0))[0], rtol=1e-4, atol=1e-4)


def test_a_model_with_own_and_shared_tables_trains_and_ranks() -> None:
    parts = cut((WATCH, STARS), *FIELDS)
    model = MultiTask.build(parts.train, body="stem", share="both", dim=4)
    run = fit(model, parts.train, test=parts.test, config=CONFIG)
    assert parts.test is not None and evaluate(model, parts.test).to_dict() == run.history[-1]["test"]
    assert run.history[1]["train"]["stars"] < run.history[0]["train"]["stars"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"body": "shared_bottom", "share": "both"}, "cannot read shared and own tables at once"),
        ({"body": "stem"}, 'reads shared and own tables; set share = "both"'),
        ({"body": "stem", "share": "both", "blocks": (("cross", ()),)}, "takes no input blocks"),
        ({"blocks": (("crss", ()),)}, "block 'crss' is unknown. Did you mean 'cross'"),
        (
            {"blocks": (("cross", (("layer", 2),)),)},
            "option of block 'cross' 'layer' is unknown. Did you mean 'layers'",
        ),
        ({"dropout": 1.0}, "dropout = 1.0 must be in [0, 1)"),
    ],
)
def test_a_design_that_does_not_fit_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(cut((STARS,)).train, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_dot_head_reads_one_table() -> None:
    with pytest.raises(ConfigError, match='with share = "both" use a tower head'):
        build(cut((DOT, STARS)).train, body="stem", share="both")


# Blocks.

OPTIONS: dict[str, dict[str, Any]] = {
    "cross": {"layers": 1},
    "mlp": {"layers": [7]},
    "pfe": {},
    "poso": {"code": ["device"]},
}


@pytest.mark.parametrize("share", ["shared", "separate"])
@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_trains_below_a_body(kind: str, share: Any) -> None:
    parts = cut((WATCH, STARS), *FIELDS)
    blocks = [{"kind": "cross", "layers": 2}, {"kind": kind} | OPTIONS[kind]]
    model = MultiTask.build(parts.train, body="shared_bottom", dim=4, share=share, blocks=blocks)
    run = fit(model, parts.train, test=parts.test, config=CONFIG)
    start = MultiTask.build(parts.train, body="shared_bottom", dim=4, share=share, blocks=blocks)
    for name, parameter in model.named_parameters():
        if "blocks" in name:
            assert not torch.equal(parameter, start.get_parameter(name))
    assert parts.test is not None and evaluate(model, parts.test).to_dict() == run.history[-1]["test"]


def test_blocks_stand_in_the_configuration() -> None:
    text = {
        "data": {"interactions": "log.csv"},
        "model": {"blocks": [{"kind": "cross", "layers": 2}, {"kind": "mlp", "layers": [8, 4]}]},
    }
    config = Config.of(text)
    assert config.model.blocks == text["model"]["blocks"]
    assert config.with_overrides({"train.epochs": 1}).model.blocks == text["model"]["blocks"]
    assert config.design().blocks == (("cross", (("layers", 2),)), ("mlp", (("layers", (8, 4)),)))
    assert parse(config.toml()).design() == config.design()
    assert len(MultiTask(cut((STARS,)).train, config.design()._replace(body="shared_bottom")).trunks[0].blocks) == 2
    with pytest.raises(ConfigError, match='a block needs kind = "name"; known: cross, mlp, pfe, poso'):
        Design.frozen_blocks([{"layers": 2}])


def test_a_body_says_what_it_misses_above_a_block() -> None:
    with pytest.raises(ConfigError, match="body 'factorize' needs a user and an item"):
        build(cut((STARS,)).train, body="factorize", blocks=(("mlp", ()),))
    part = cut((WATCH, Task("like", "ranking", head="dot")), *FIELDS).train
    assert ranks_of(build(part, blocks=(("cross", ()),)), part, "like").min() >= 1
