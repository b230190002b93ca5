from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from polytask import rng
from polytask.errors import ConfigError
from polytask.nn.bodies.home import FeatureGate, Home, SelfGate, grouped
from polytask.nn.bodies.shape import Shape
from polytask.nn.layers import Initialized
from polytask.schema import Input

NAMES = ("click", "like", "watch")
GROUPS = (("click", "like"), ("watch",))


def shape(tasks: int = 3, fields: int = 2, dim: int = 3) -> Shape:
    return Shape(tuple(Input(f"f{n}", "category", "context", 5) for n in range(fields)), dim, tasks, NAMES[:tasks])


def random(body: torch.nn.Module, seed: int = 1) -> Any:
    draw = torch.Generator().manual_seed(seed)
    for parameter in body.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draw))
    return body


def rows(count: int = 4, fields: int = 2, dim: int = 3) -> Tensor:
    return torch.randn(count, fields, dim, generator=torch.Generator().manual_seed(0))


def sigmoid(v: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-v))


def softmax(v: np.ndarray) -> np.ndarray:
    return np.exp(v - v.max()) / np.exp(v - v.max()).sum()


class Plain:
    """HoME of one row, expert by expert, in float64."""

    def __init__(self, body: Home) -> None:
        self.values = {n: p.detach().double().numpy() for n, p in body.named_parameters()}
        self.layers = len(body.first.layers)

    def expert(self, level: str, number: int, v: np.ndarray) -> np.ndarray:
        down, up = (self.values[f"{level}.feature_gate.{part}"][number] for part in ("down", "up"))
        v = v * 2 * sigmoid(v @ down @ up)
        for layer in range(self.layers):
            weight, bias = (self.values[f"{level}.layers.{layer}.{part}"][number] for part in ("weight", "bias"))
            v = v @ weight + bias
            v = (v - v.mean()) / np.sqrt(v.var() + 1e-5)
            v = v * sigmoid(v)
        return v

    def self_gate(self, name: str, v: np.ndarray) -> np.ndarray:
        logits = self.values[f"{name}.weight"] @ v
        return sigmoid(logits) if len(logits) == 1 else softmax(logits)

    def mix(self, name: str, v: np.ndarray, experts: Sequence[np.ndarray]) -> np.ndarray:
        return softmax(self.values[f"{name}.weight"] @ v) @ np.stack(experts)

    def __call__(self, v: np.ndarray, group: Sequence[int], m: int) -> list[np.ndarray]:
        groups = max(group) + 1
        level1 = [[self.expert("first", kind * m + n, v) for n in range(m)] for kind in range(1 + groups)]
        z_all = self.mix("gate", v, level1[0])
        z = []
        for k in range(groups):
            own = level1[1 + k]
            kept = self.self_gate(f"group_selves.{k}", v) @ np.stack(own)
            z.append(self.mix(f"group_gates.{k}", v, [*level1[0], *own]) + kept)
        found = []
        for task, k in enumerate(group):
            of_all = [self.expert("second", n, z_all) for n in range(m)]
            of_group = [self.expert("second", (1 + k) * m + n, z[k]) for n in range(m)]
            own = [self.expert("second", (1 + groups + task) * m + n, z[k]) for n in range(m)]
            mixed = self.mix(f"task_gates.{task}", np.concatenate([z[k], z_all]), [*of_all, *of_group, *own])
            found.append(mixed + self.self_gate(f"task_selves.{task}", z[k]) @ np.stack(own))
        return found


@pytest.mark.parametrize("experts", [1, 2])
@pytest.mark.parametrize(("groups", "group"), [(GROUPS, (0, 0, 1)), ((("watch",),), (1, 1, 0)), ((), (0, 0, 0))])
def test_outputs_are_those_of_the_equations(groups: Any, group: Sequence[int], experts: int) -> None:
    body = random(Home(shape(), groups=groups, experts=experts, layers=(5, 4), rank=2))
    x = rows()
    found = body(x)
    for row in range(len(x)):
        expected = Plain(body)(x[row].flatten().double().numpy(), group, experts)
        for task in range(3):
            np.testing.assert_allclose(found[task][row].detach(), expected[task], rtol=1e-4, atol=1e-5)


def test_a_task_reads_and_moves_no_expert_of_another_group_or_task() -> None:
    body = random(Home(shape(), groups=GROUPS, experts=2, layers=(4,), rank=2))
    body(rows())[2].square().sum().backward()  # watch: group 1
    moved = {n: (p.grad.flatten(1) != 0).any(dim=1).tolist() for n, p in body.named_parameters() if p.grad is not None}
    yes, no = [True] * 2, [False] * 2
    for part in ("feature_gate.down", "feature_gate.up", "layers.0.weight", "layers.0.bias"):
        assert moved[f"first.{part}"] == yes + no + yes
        assert moved[f"second.{part}"] == yes + no + yes + no + no + yes
    assert {
        n.rsplit(".", 1)[0] for n, any_row in moved.items() if ("gates" in n or "selves" in n) and any(any_row)
    } == {
        "group_gates.1",
        "group_selves.1",
        "task_gates.2",
        "task_selves.2",
    }


def test_all_experts_have_outputs_of_one_scale() -> None:
    body = started(Home(shape(), groups=GROUPS, experts=3, layers=(64,)))
    body.first.layers[0].weight.data *= torch.logspace(0, 4, 9)[:, None, None]  # some are 10,000 times larger
    spread = body.first(rows(200).flatten(start_dim=1)).std(dim=(0, 2))
    assert spread.max() / spread.min() < 1.1


def started(body: Any, seed: int = 0) -> Any:
    for name, module in body.named_modules():
        if isinstance(module, Initialized):
            module.initialize(name, lambda part: rng.generator(seed, f"init/{part}"))
    return body


def test_it_starts_with_open_feature_gates_even_shares_and_experts_of_their_own() -> None:
    body = started(random(Home(shape(), groups=GROUPS, experts=2, layers=(6,))))
    v = rows().flatten(start_dim=1)
    torch.testing.assert_close(body.first.feature_gate(v), v[:, None].expand(-1, 6, -1))
    torch.testing.assert_close(body.gate(v), torch.full((4, 2), 0.5), atol=0.02, rtol=0)
    torch.testing.assert_close(body.group_selves[0](v), torch.full((4, 2), 0.5), atol=0.02, rtol=0)
    weight = body.first.layers[0].weight
    assert all((weight[a] != weight[b]).all() for a in range(6) for b in range(a))
    assert weight.abs().max() <= 6**-0.5 and body.first.feature_gate.down.abs().max() <= 6**-0.5


def test_a_feature_gate_opens_by_its_low_rank_product() -> None:
    gate = FeatureGate(1, 2, 1)
    gate.down.data, gate.up.data = torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[0.0, 2.0]]])
    v = torch.tensor([[0.5, 3.0]])
    assert gate(v)[0, 0].tolist() == pytest.approx([0.5, 3.0 * 2 / (1 + np.exp(-1.0))])


def test_the_self_gate_of_one_expert_is_a_sigmoid() -> None:
    gate = SelfGate(2, 1)
    gate.weight.data = torch.tensor([[1.0, -1.0]])
    assert gate(torch.tensor([[3.0, 1.0]])).item() == pytest.approx(1 / (1 + np.exp(-2.0)))


def test_gates_name_their_reader() -> None:
    body = Home(shape(), groups=GROUPS, experts=2, layers=(4,), gate_dropout=0.1)
    assert {m.share for m in body.modules() if hasattr(m, "reader")} == {0.1}
    found = {n: (m.reader, m.experts) for n, m in body.named_modules() if hasattr(m, "reader")}
    assert found == {
        "gate": (None, 2),
        "group_gates.0": (None, 4),
        "group_gates.1": (None, 4),
        "task_gates.0": (0, 6),
        "task_gates.1": (1, 6),
        "task_gates.2": (2, 6),
    }


def test_tasks_that_are_not_listed_form_a_group_and_one_task_is_alone() -> None:
    assert grouped((("like",),), shape()) == [1, 0, 1]
    assert grouped((), shape()) == [0, 0, 0]
    assert grouped((("no such",),), shape(1)) == [0]
    assert grouped((), Shape(shape().inputs, 3, 2)) == [0, 0]
    assert [z.shape for z in random(Home(shape(1), groups=GROUPS))(rows())] == [(4, 64)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": [["click", "wtach"]]}, "task 'wtach' is unknown. Did you mean 'watch'"),
        ({"groups": [["click"], ["click"]]}, "task 'click' is named twice"),
        ({"groups": [[]]}, r"groups\[0\] is empty"),
        ({"experts": 0}, "experts = 0"),
        ({"layers": ()}, r"layers = \[\]"),
        ({"layers": (8, 1)}, "a width of 1 cannot be normalized"),
        ({"rank": 0}, "rank = 0"),
        ({"gate_dropout": 1.0}, "gate_dropout = 1.0"),
    ],
)
def test_a_wrong_option_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Home(shape(), **options)
    assert "\n" not in str(caught.value)


def test_stacked_replicas_give_what_each_gives_alone() -> None:
    bodies = [random(Home(shape(), groups=GROUPS, layers=(4,)), seed) for seed in range(3)]
    parameters, buffers = stack_module_state(bodies)
    x = torch.stack([rows(5) + n for n in range(3)])
    stacked = vmap(lambda p, b, one: functional_call(bodies[0], (p, b), (one,)))(parameters, buffers, x)
    for number, body in enumerate(bodies):
        for one, alone in zip(stacked, body(x[number]), strict=True):
            torch.testing.assert_close(one[number], alone, rtol=1e-4, atol=1e-5)


def test_it_can_be_exported_for_any_number_of_rows() -> None:
    body = random(Home(shape(), groups=GROUPS, layers=(4,))).eval()
    program = torch.export.export(body, (rows(5),), dynamic_shapes=({0: torch.export.Dim("rows")},)).module()
    for count in (1, 5, 64):
        for one, exported in zip(body(rows(count)), program(rows(count)), strict=True):
            torch.testing.assert_close(exported, one)


def test_a_row_does_not_depend_on_its_neighbors() -> None:
    body, x = random(Home(shape(), groups=GROUPS, layers=(4,))), rows(6)
    for whole, alone in zip(body(x), body(x[2:3]), strict=True):
        torch.testing.assert_close(whole[2:3], alone)
