import copy
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polytask.data.split import split
from polytask.data.synthetic import synthetic
from polytask.gates import DEAD, GateUse, gate_use
from polytask.gradients import Programs
from polytask.nn.bodies import BODIES
from polytask.nn.layers import Gate
from polytask.nn.model import MultiTask
from polytask.run import TrainConfig
from polytask.train import fit

DATA = synthetic(users=30, items=50, rows=700, seed=3)
CUT = split(DATA, valid=0.1, test=0.1)
PART = CUT.train


@pytest.fixture(autouse=True)
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps in their plain form: tracing takes longer than these trainings."""
    monkeypatch.setattr("polytask.train.Programs", partial(Programs, trace=False))


class Fixed(nn.Module):
    """A gate that gives row b the shares ``rows[b % len(rows)]``."""

    def __init__(self, rows: Sequence[Sequence[float]], reader: int | None = None) -> None:
        super().__init__()
        self.rows, self.experts, self.reader = torch.tensor(rows), len(rows[0]), reader

    def forward(self, x: Tensor) -> Tensor:
        return self.rows[torch.arange(len(x)) % len(self.rows)]


class Mixed(nn.Module):
    """A body with the gates given to it."""

    gates: Sequence[nn.Module] = ()
    width = 8

    def __init__(self, shape: Any) -> None:
        super().__init__()
        self.own, self.tasks = nn.ModuleList(map(copy.deepcopy, self.gates)), shape.tasks

    def forward(self, x: Tensor) -> list[Tensor]:
        for gate in self.own:
            gate(x)
        return [x.flatten(start_dim=1)] * self.tasks


def used(monkeypatch: pytest.MonkeyPatch, *gates: nn.Module, rows: int = 2048, **options: Any) -> list[GateUse]:
    monkeypatch.setattr(Mixed, "gates", gates)
    monkeypatch.setitem(BODIES, "mixed", Mixed)
    model = MultiTask.build(PART, body="mixed", dim=4, tower=(5,), **options)
    return gate_use(model, PART, rows)


def test_a_gate_that_takes_all_experts_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    (use,) = used(monkeypatch, Fixed([[0.25] * 4]))
    assert use.mean == (0.25,) * 4 and use.std == (0.0,) * 4
    assert (use.entropy, use.balance, use.dead) == (1.0, 1.0, 0)


def test_a_gate_that_takes_one_expert_for_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    (use,) = used(monkeypatch, Fixed([[0.0, 1.0, 0.0]]))
    assert (use.mean, use.entropy, use.balance, use.dead) == ((0.0, 1.0, 0.0), 0.0, 0.0, 2)


def test_a_gate_that_takes_another_expert_for_every_other_row(monkeypatch: pytest.MonkeyPatch) -> None:
    (use,) = used(monkeypatch, Fixed([[1.0, 0.0], [0.0, 1.0]]), rows=100)
    assert use.mean == (0.5, 0.5) and use.std == (0.5, 0.5)
    assert (use.entropy, use.balance, use.dead) == (0.0, 1.0, 0)  # sure of every row, and yet balanced


def test_entropy_is_in_shares_of_the_largest_and_an_expert_below_one_percent_is_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (use,) = used(monkeypatch, Fixed([[0.991, 0.009, 0.0]]))
    expected = -(0.991 * math.log(0.991) + 0.009 * math.log(0.009)) / math.log(3)
    assert use.entropy == pytest.approx(expected, rel=1e-4) == pytest.approx(use.balance, rel=1e-4)
    assert use.dead == 2 and DEAD == 0.01


def test_the_first_rows_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 10_000
    assert used(monkeypatch, Fixed(rows), rows=4)[0].mean == (0.75, 0.25)
    assert used(monkeypatch, Fixed(rows))[0].mean[0] == pytest.approx(3 / len(PART))


def test_gates_are_named_and_know_their_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = Fixed([[0.5, 0.5]], 1), Fixed([[0.5, 0.5]]), Fixed([[1.0]], 0)  # the last has nothing to choose
    found = used(monkeypatch, *gates)
    assert [(u.gate, u.task) for u in found] == [("trunks.0.body.own.0", "rating"), ("trunks.0.body.own.1", None)]
    separate = used(monkeypatch, Fixed([[0.5, 0.5]], 0), share="separate")
    assert [(u.gate, u.task) for u in separate] == [("trunks.1.body.own.0", "rating")]  # watch's head is no tower


def test_the_gate_of_a_task_whose_head_reads_no_body_is_left_out() -> None:
    watch, rating = PART.schema.tasks
    assert (watch.head, rating.head) == ("dot", "tower")
    found = gate_use(MultiTask.build(PART, body="ple", dim=4, tower=(5,)), PART)
    assert {u.task for u in found} == {"rating", None}
    towers = replace(PART.schema, tasks=(replace(watch, head="tower"), rating))
    cut = split(replace(DATA, schema=towers), valid=0.1, test=0.1).train
    assert {u.task for u in gate_use(MultiTask.build(cut, body="mmoe", dim=4), cut)} == {"watch", "rating"}


@pytest.mark.parametrize("body", ["mmoe", "ple", "home", "sparse_moe"])
def test_the_use_of_a_bodys_gates_is_that_of_the_shares_it_gives(body: str) -> None:
    model = MultiTask.build(PART, body=body, dim=4, tower=(5,))
    model.train()
    found = {u.gate: u for u in gate_use(model, PART, 64)}
    assert found and model.training
    for use in found.values():
        assert sum(use.mean) == pytest.approx(1, abs=1e-5) and 0 <= use.entropy <= use.balance + 1e-6
        assert use.task in (None, "watch", "rating")
    assert not any(m._forward_hooks for m in model.modules())


def test_looking_changes_nothing_and_needs_no_chance() -> None:
    model = MultiTask.build(PART, body="mmoe", dim=4, options={"gate_dropout": 0.5})
    before = [p.clone() for p in model.parameters()]
    first, second = gate_use(model.train(), PART), gate_use(model.eval(), PART)
    assert first == second and not model.training
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, model.parameters(), strict=True))


def test_a_body_without_gates_has_no_use() -> None:
    assert gate_use(MultiTask.build(PART, body="shared_bottom", dim=4), PART) == []


class Broken(Fixed):
    """A gate that fails."""

    def forward(self, x: Tensor) -> Tensor:
        raise ZeroDivisionError


def test_a_gate_that_fails_leaves_no_hook_and_the_model_in_its_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mixed, "gates", (Broken([[0.5, 0.5]]),))
    monkeypatch.setitem(BODIES, "mixed", Mixed)
    model = MultiTask.build(PART, body="mixed", dim=4).train()
    with pytest.raises(ZeroDivisionError):
        gate_use(model, PART)
    assert model.training and not any(m._forward_hooks for m in model.modules())


def test_a_run_records_the_gates_of_the_tasks_it_trains_as_plain_values() -> None:
    config = TrainConfig(epochs=2, batch=128, patience=0)
    model = MultiTask.build(PART, body="mmoe", dim=4, tower=(5,))
    run = fit(model, PART, CUT.valid, weights={"watch": 0.0, "rating": 1.0}, config=config)
    for record in run.history:
        assert [g["task"] for g in record["gates"]] == ["rating"]
        assert json.loads(json.dumps(record)) == record
    assert run.history[0]["gates"] != run.history[1]["gates"]
    assert any(isinstance(m, Gate) for m in model.modules())
