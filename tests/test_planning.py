"""Memory planned ahead: results and training are those without a plan, and nothing that is needed is written over."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from polytask import gradients, planning
from polytask.balance import Balance
from polytask.data.split import split
from polytask.data.synthetic import synthetic
from polytask.nn import fused
from polytask.nn.design import Design
from polytask.nn.model import MultiTask
from polytask.planning import Block, Life, packed, plan
from polytask.run import TrainConfig
from polytask.train import fit_many

Program = Callable[..., list[Tensor]]


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators of their own for layers of any size, in blocks of few rows, and results of any size planned."""
    monkeypatch.setattr(fused, "LEAST", 0)
    monkeypatch.setattr(fused, "_BLOCK", 2000)
    monkeypatch.setattr(planning, "LEAST", 1)


def chain(x: Tensor, index: Tensor, first: Tensor, second: Tensor) -> list[Tensor]:
    """Gathers, products, sums and layers of two experts, with results that live for a long and a short time."""
    rows = x.index_select(0, index)
    wide = torch.cat([rows, rows * 2, torch.mm(rows, rows.T)[:, : rows.shape[1]]], dim=1)
    biases = [first.new_ones(2, 6), second.new_ones(2, 5)]
    outputs = fused.fused_layers(wide, [first, second], biases, [True, True], torch.float32)
    found = fused.fused_layers_backward(outputs[1] + 1, wide, outputs, [first, second], [True, True], True)
    stacked = torch.stack([rows, found[-1][:, : rows.shape[1]]])
    return [stacked + wide[:, : rows.shape[1]], torch.bmm(stacked, stacked.transpose(1, 2)), *found]


def inputs(seed: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    index = torch.randint(9, (12,), generator=draw)
    sizes = (9, 4), (2, 12, 6), (2, 6, 5)
    x, first, second = (torch.randn(*size, generator=draw) for size in sizes)
    return [x, index, first, second]


def traced(program: Program, given: list[Tensor]) -> GraphModule:
    return make_fx(program, tracing_mode="fake", _allow_non_fake_inputs=True)(*given)


@pytest.mark.parametrize("lent", [True, False])
def test_a_planned_program_gives_what_it_gave(everything: None, lent: bool) -> None:
    graph, block = traced(chain, inputs(0)), Block()
    plan(graph, block, lent=lent)
    planned = [n for n in graph.graph.nodes if "out" in n.kwargs]
    assert len(planned) >= (9 if lent else 6)
    for seed in (1, 2, 1):
        block.wake()
        for found, wanted in zip(graph(*inputs(seed)), chain(*inputs(seed)), strict=True):
            assert torch.equal(found, wanted)
        if seed == 2:
            block.rest()


def test_what_is_returned_is_the_callers_unless_it_is_lent(everything: None) -> None:
    for lent in (False, True):
        graph, block = traced(chain, inputs(0)), Block()
        plan(graph, block, lent=lent)
        block.wake()
        first = graph(*inputs(1))
        before = [t.clone() for t in first]
        graph(*inputs(2))
        same = [torch.equal(a, b) for a, b in zip(first, before, strict=True)]
        assert all(same) is not lent


def test_programs_take_turns_with_one_block(everything: None) -> None:
    block, small, large = Block(), traced(lambda x: [x.mm(x) + 1], [torch.ones(4, 4)]), traced(chain, inputs(0))
    for graph in (small, large):
        plan(graph, block, lent=False)
    for seed in (1, 2):
        block.wake()
        assert torch.equal(small(torch.ones(4, 4))[0], torch.full((4, 4), 5.0))
        for found, wanted in zip(large(*inputs(seed)), chain(*inputs(seed)), strict=True):
            assert torch.equal(found, wanted)


def test_views_are_empty_while_the_block_rests() -> None:
    block = Block()
    block.grow(256)
    view = block.view(torch.empty(4, 8), 64)
    assert view.numel() == 0
    block.wake()
    assert view.shape == (4, 8) and view.untyped_storage().nbytes() == 256 and view.storage_offset() == 16
    block.rest()
    assert view.numel() == 0 and view.untyped_storage().nbytes() == 0


def test_lives_that_meet_share_no_byte_and_others_do() -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(40):
        first, length, size = (torch.randint(low, 30, (25,), generator=draw).tolist() for low in (0, 0, 1))
        lives = {n: Life(f, f + k, 100 * s) for n, (f, k, s) in enumerate(zip(first, length, size, strict=True))}
        offsets, total = packed(lives)
        for a, one in lives.items():
            assert offsets[a] % planning.ALIGNED == 0 and offsets[a] + one.size <= total
            for b in range(a):
                other, apart = lives[b], offsets[a] + one.size <= offsets[b] or offsets[b] + lives[b].size <= offsets[a]
                assert apart or one.last < other.first or other.last < one.first
        most = max(sum(v.size for v in lives.values() if v.first <= t <= v.last) for t in range(60))
        assert most <= total < 1.5 * most + 64 * len(lives)
    assert packed({0: Life(0, 1, 640), 1: Life(2, 3, 640), 2: Life(1, 2, 64)})[1] == 704
    assert packed({}) == ({}, 0)


TRAININGS = {
    "one pass": {},
    "micro-batches": {"accumulate": 3},
    "rows": {"tables": "rowwise_adagrad", "clip": 1.0, "accumulate": 2},
    "weights that move": {"balance": Balance("uncertainty"), "accumulate": 2},
    "gradients by task": {"balance": Balance("mgda")},
    "half precision": {"precision": "bfloat16"},
}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("options", TRAININGS.values(), ids=TRAININGS)
def test_a_plan_changes_no_training(
    everything: None, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], count: int
) -> None:
    part = split(synthetic(users=40, items=30, rows=700, seed=6), valid=0, test=0.2).train
    config = TrainConfig(batch=150, epochs=2, lr=0.01, patience=0, **options)
    plans = []

    def counted(graph: GraphModule, block: Block, *, lent: bool) -> None:
        plan(graph, block, lent=lent)
        plans.append(lent)

    def trained() -> dict[str, Tensor]:
        design = Design("mmoe", 4, tower=(5,), options=(("experts", 3), ("layers", (6, 4))))
        models = [MultiTask(part, design) for _ in range(count)]
        fit_many(models, part, config=[replace(config, seed=seed) for seed in range(count)])
        return {f"{n} {name}": p.detach() for n, m in enumerate(models) for name, p in m.named_parameters()}

    monkeypatch.setattr(gradients, "plan", counted)
    found = trained()
    monkeypatch.setattr(gradients, "plan", lambda *_, **__: None)
    wanted = trained()
    assert plans and all(torch.equal(found[n], value) for n, value in wanted.items())
