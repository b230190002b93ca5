"""Kernels over the rows of a table against their plain forms and PyTorch's own optimizers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polytask.kernels.rows import (
    AdamScales,
    RowSums,
    _plain_lazy_adam,
    _plain_rowwise_adagrad,
    _plain_sum_rows,
    lazy_adam,
    rowwise_adagrad,
    sum_rows,
)


def gradients(rows: int, count: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(rows, (count,), generator=draw), torch.randn(count, dim, generator=draw)


def by_row(found: RowSums) -> RowSums:
    order = found.rows.argsort()
    return RowSums(found.rows[order], found.sums[order])


def step_scales(step: int) -> AdamScales:
    return AdamScales(0.9, 0.999, 1 - 0.9**step, (1 - 0.999**step) ** 0.5, 1e-8)


@settings(deadline=None, max_examples=50)
@given(rows=st.integers(1, 50), count=st.integers(0, 200), dim=st.integers(1, 5), seed=st.integers(0, 1000))
def test_sums_by_row_are_those_of_the_plain_form(rows: int, count: int, dim: int, seed: int) -> None:
    index, values = gradients(rows, count, dim, seed)
    found, plain = sum_rows(index, values), _plain_sum_rows(index, values)
    assert len(found.rows.unique()) == len(found.rows)
    assert torch.equal(by_row(found).rows, plain.rows)
    assert torch.equal(by_row(found).sums, plain.sums)


def test_rows_come_in_order_of_appearance_however_large_their_numbers() -> None:
    index = torch.tensor([1 << 40, 7, 1 << 40, 0, 7, (1 << 62) + 5])
    found = sum_rows(index, torch.ones(6, 2))
    assert found.rows.tolist() == [1 << 40, 7, 0, (1 << 62) + 5]
    assert found.sums.tolist() == [[2.0, 2.0], [2.0, 2.0], [1.0, 1.0], [1.0, 1.0]]


def test_rows_whose_slots_collide_are_kept_apart() -> None:
    index = torch.arange(5000) * (1 << 32)
    found = sum_rows(torch.cat([index, index]), torch.ones(10000, 1))
    assert torch.equal(found.rows, index) and bool((found.sums == 2).all())


def test_several_threads_find_what_one_finds() -> None:
    index, values = gradients(60_000, 200_000, 3)
    one = sum_rows(index, values)
    table, state, rates = torch.zeros(60_000, 3), torch.zeros(60_000), torch.full((len(one.rows),), 0.1)
    rowwise_adagrad(table, state, one, rates, 1e-8)
    torch.set_num_threads(2)
    try:
        two = sum_rows(index, values)
        again, sums = torch.zeros_like(table), torch.zeros_like(state)
        rowwise_adagrad(again, sums, two, rates, 1e-8)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one.rows, two.rows) and torch.equal(one.sums, two.sums)
    assert torch.equal(table, again) and torch.equal(state, sums)


def test_rowwise_adagrad_is_its_plain_form_and_adagrad_where_rows_are_one_number() -> None:
    tables, states = [torch.ones(9, 4) for _ in range(2)], [torch.zeros(9) for _ in range(2)]
    single, own = torch.ones(9, 1), torch.zeros(9)
    oracle = torch.nn.Parameter(torch.ones(9, 1))
    optimizer = torch.optim.Adagrad([oracle], lr=0.1, eps=1e-8)
    for seed in range(5):
        found = sum_rows(*gradients(9, 20, 4, seed))
        rates = torch.full((len(found.rows),), 0.1)
        rowwise_adagrad(tables[0], states[0], found, rates, 1e-8)
        _plain_rowwise_adagrad(tables[1], states[1], found, rates, 1e-8)
        first = RowSums(found.rows, found.sums[:, :1].contiguous())
        rowwise_adagrad(single, own, first, rates, 1e-8)
        oracle.grad = torch.zeros(9, 1).index_add_(0, first.rows, first.sums)
        optimizer.step()
    torch.testing.assert_close(tables[0], tables[1])
    torch.testing.assert_close(states[0], states[1])
    torch.testing.assert_close(single, oracle.detach())


def test_rowwise_adagrad_by_hand() -> None:
    table, state = torch.zeros(2, 2), torch.tensor([0.0, 9.5])
    found = RowSums(torch.tensor([1]), torch.tensor([[3.0, 4.0]]))  # mean of squares 12.5; sqrt(9.5 + 12.5) = 4.690416
    rowwise_adagrad(table, state, found, torch.tensor([0.5]), 0.0)
    assert state.tolist() == [0.0, 22.0]
    assert table[0].tolist() == [0.0, 0.0]
    assert table[1].tolist() == pytest.approx([-0.5 * 3 / 4.690416, -0.5 * 4 / 4.690416])


def test_lazy_adam_is_its_plain_form_and_sparse_adam() -> None:
    tables = [torch.ones(9, 4) for _ in range(2)]
    moments = [[torch.zeros(9, 4) for _ in range(2)] for _ in range(2)]
    oracle = torch.nn.Parameter(torch.ones(9, 4))
    optimizer = torch.optim.SparseAdam([oracle], lr=0.05)
    for step in range(1, 6):
        found = sum_rows(*gradients(9, 6, 4, step))
        rates = torch.full((len(found.rows),), 0.05)
        lazy_adam(tables[0], *moments[0], found, rates, step_scales(step))
        _plain_lazy_adam(tables[1], *moments[1], found, rates, step_scales(step))
        oracle.grad = torch.sparse_coo_tensor(found.rows[None], found.sums, (9, 4), check_invariants=True)
        optimizer.step()
    torch.testing.assert_close(tables[0], tables[1])
    torch.testing.assert_close(moments[0], moments[1])
    torch.testing.assert_close(tables[0], oracle.detach())
