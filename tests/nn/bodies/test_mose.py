from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from polytask import rng
from polytask.errors import ConfigError
from polytask.nn.bodies.mose import Mose, Recurrence
from polytask.nn.bodies.shape import Shape
from polytask.schema import Input

FIELDS, DIM, LENGTH = 2, 3, 4


def shape(tasks: int = 2) -> Shape:
    return Shape(tuple(Input(f"f{n}", "category", "context", 5) for n in range(FIELDS)), DIM, tasks)


def random(module: torch.nn.Module, seed: int = 1) -> Any:
    draw = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draw))
    return module


def rows(count: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Fields, past items, and which of them there are: from none to all, at the front, in the middle, at the end."""
    draw = torch.Generator().manual_seed(seed)
    patterns = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 0]])
    present = patterns.repeat(count // 6 + 1, 1)[:count].bool()
    return (
        torch.randn(count, FIELDS, DIM, generator=draw),
        torch.randn(count, LENGTH, DIM, generator=draw),
        present,
    )


def lstm(recurrence: Recurrence, number: int) -> torch.nn.LSTM:
    """PyTorch's own LSTM with the weights of the ``number``-th: its gates stand in the same order."""
    width_in, width = recurrence.read.shape[1], recurrence.recall.shape[1]
    made = torch.nn.LSTM(width_in, width, batch_first=True)
    made.weight_ih_l0.data.copy_(recurrence.read[number].T)
    made.weight_hh_l0.data.copy_(recurrence.recall[number].T)
    made.bias_ih_l0.data.copy_(recurrence.bias[number])
    made.bias_hh_l0.data.zero_()
    return made


def test_the_recurrence_is_pytorchs_lstm_and_passes_over_what_is_absent() -> None:
    recurrence = random(Recurrence(2, DIM, 5))
    _, events, present = rows()
    states = recurrence(events, present)
    for number in range(2):
        plain = lstm(recurrence, number)
        for row in range(len(events)):
            there = present[row].nonzero()[:, 0]
            assert not states[row, : int(there[0]) if len(there) else LENGTH, number].any()  # nothing read so far
            if len(there):
                expected = plain(events[row, there][None])[0][0]
                torch.testing.assert_close(states[row, there, number], expected)
                torch.testing.assert_close(states[row, -1, number], expected[-1])


def test_one_step_by_hand() -> None:
    recurrence = Recurrence(1, 1, 1)
    recurrence.read.data = torch.tensor([[[0.0, 50.0, 1.0, 50.0]]])  # i = 1/2, f = o = 1, g = tanh(x + h)
    recurrence.recall.data = torch.tensor([[[0.0, 0.0, 1.0, 0.0]]])
    states = recurrence(torch.tensor([[[1.0], [2.0]]]), torch.ones(1, 2, dtype=torch.bool)).flatten()
    c1 = torch.tanh(torch.tensor(1.0)) / 2
    c2 = c1 + torch.tanh(2.0 + torch.tanh(c1)) / 2
    torch.testing.assert_close(states, torch.tanh(torch.stack([c1, c2])))


@pytest.mark.parametrize("experts", [1, 3])
def test_outputs_are_those_of_the_equation(experts: int) -> None:
    body = random(Mose(shape(), experts=experts, width=4))
    x, history, present = rows()
    found = body(x, history, present)
    trunk, each = lstm(body.trunk, 0), [lstm(body.experts, e) for e in range(experts)]
    for row in range(len(x)):
        last = x[row].flatten() @ body.row.weight.T + body.row.bias
        states = trunk(torch.cat([history[row, present[row]], last[None]])[None])[0]
        outputs = [e(states)[0][0, -1] for e in each]
        for task in range(2):
            shares = torch.softmax(body.gates[task].weight @ states[0, -1], dim=0)
            expected = sum(share * output for share, output in zip(shares, outputs, strict=True))
            torch.testing.assert_close(found[task][row], expected, rtol=1e-4, atol=1e-5)


def test_absent_events_have_no_effect_wherever_they_stand() -> None:
    body = random(Mose(shape(), width=4))
    x, history, present = rows()
    plain = body(x, history, present)
    other = torch.where(present[..., None], history, torch.full_like(history, 1e6)).requires_grad_()
    for one, same in zip(plain, body(x, other, present), strict=True):
        assert torch.equal(one, same)
    (gradient,) = torch.autograd.grad(body(x, other, present)[0].square().sum(), other)
    assert gradient.isfinite().all()
    assert torch.equal((gradient != 0).any(dim=-1), present)
    front, back = torch.zeros(6, 2, DIM), torch.zeros(6, 1, DIM)
    there = torch.cat([torch.zeros(6, 2), present, torch.zeros(6, 1)], dim=1).bool()
    for one, padded in zip(plain, body(x, torch.cat([front, history, back], dim=1), there), strict=True):
        torch.testing.assert_close(padded, one)


def test_order_matters_and_so_does_the_row() -> None:
    body = random(Mose(shape(), width=4))
    x, history, _ = rows()
    whole = torch.ones(6, LENGTH, dtype=torch.bool)
    plain = body(x, history, whole)[0]
    assert (body(x, history.flip(1), whole)[0] != plain).any(dim=1).all()
    assert (body(x + 1, history, whole)[0] != plain).any(dim=1).all()


def test_it_starts_as_pytorchs_lstm_and_experts_differ() -> None:
    recurrence = Recurrence(3, DIM, 16)
    recurrence.initialize("experts", lambda name: rng.generator(0, f"init/{name}"))
    for parameter in recurrence.parameters():
        assert 0.2 < parameter.abs().max() <= 0.25  # 1/sqrt(16)
        assert all((parameter[a] != parameter[b]).any() for a in range(3) for b in range(a))


@pytest.mark.parametrize("tasks", [1, 3])
def test_every_task_has_a_gate_that_names_it(tasks: int) -> None:
    body = random(Mose(shape(tasks), experts=3, width=4, gate_dropout=0.1))
    assert [g.share for g in body.gates] == [0.1] * tasks
    assert [tuple(z.shape) for z in body(*rows(5))] == [(5, 4)] * tasks
    assert [(g.reader, g.experts) for g in body.gates] == [(t, 3) for t in range(tasks)]
    assert body.sequential and body.width == 4


@pytest.mark.parametrize("options", [{"experts": 0}, {"width": 0}, {"gate_dropout": 1.0}])
def test_a_wrong_option_is_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"body 'mose': \w+ = [01](\.0)? must be at least"):
        Mose(shape(), **options)


def test_stacked_replicas_give_what_each_gives_alone() -> None:
    bodies = [random(Mose(shape(), experts=2, width=4), seed) for seed in range(3)]
    parameters, buffers = stack_module_state(bodies)
    given = [rows(5, seed) for seed in range(3)]
    x = tuple(torch.stack(part) for part in zip(*given, strict=True))
    stacked = vmap(lambda p, b, *one: functional_call(bodies[0], (p, b), one))(parameters, buffers, *x)
    for number, body in enumerate(bodies):
        for one, alone in zip(stacked, body(*given[number]), strict=True):
            torch.testing.assert_close(one[number], alone, rtol=1e-4, atol=1e-5)


def test_it_can_be_exported_for_any_number_of_rows() -> None:
    body = random(Mose(shape(), experts=2, width=4)).eval()
    batch = {0: torch.export.Dim("rows")}
    program = torch.export.export(body, rows(5), dynamic_shapes=(batch, batch, batch)).module()
    for count in (1, 5, 64):
        for one, exported in zip(body(*rows(count)), program(*rows(count)), strict=True):
            torch.testing.assert_close(exported, one)


def test_a_row_does_not_depend_on_its_neighbors() -> None:
    body, given = random(Mose(shape(), width=4)), rows()
    for row in range(6):
        for whole, alone in zip(body(*given), body(*(part[row : row + 1] for part in given)), strict=True):
            torch.testing.assert_close(whole[row : row + 1], alone)
