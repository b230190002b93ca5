from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from polytask import rng
from polytask.errors import ConfigError
from polytask.nn.blocks import BLOCKS, Cross, Mlp, Poso, Prototypes
from polytask.nn.bodies import BODIES, Shape
from polytask.nn.layers import Initialized
from polytask.schema import Input

SHAPE = Shape(
    (
        Input("user", "category", "user", 7),
        Input("item", "category", "item", 9),
        Input("is_new", "category", "context", 3),
    ),
    dim=4,
    tasks=2,
    names=("click", "like"),
)
OPTIONS: dict[str, dict[str, Any]] = {"poso": {"code": ["is_new"]}}
CASES = [
    ("cross", {}),
    ("cross", {"layers": 3, "rank": 2}),
    ("mlp", {"layers": (6, 5)}),
    ("pfe", {"prototypes": 3}),
    ("poso", {"code": ("is_new",)}),
    ("poso", {"code": ("item", "is_new"), "layers": ()}),
]


def random(module: nn.Module, seed: int = 1) -> Any:
    draw = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draw))
    return module


def rows(count: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", BLOCKS)
def test_the_output_has_the_shape_that_the_block_says(name: str) -> None:
    made = BLOCKS[name](SHAPE, **OPTIONS.get(name, {}))
    for count in (1, 5):
        assert made(rows(count)).shape == (count, len(made.shape.inputs), made.shape.dim)
    assert (made.shape.tasks, made.shape.names) == (2, ("click", "like"))


@pytest.mark.parametrize("name", BLOCKS)
def test_a_body_can_stand_on_a_block(name: str) -> None:
    made = BLOCKS[name](SHAPE, **OPTIONS.get(name, {}))
    body = BODIES["shared_bottom"](made.shape, layers=(3,))
    assert [z.shape for z in body(made(rows()))] == [(5, 3)] * 2


@pytest.mark.parametrize("rank", [0, 2])
def test_cross_is_the_equation_layer_by_layer(rank: int) -> None:
    block = random(Cross(SHAPE, layers=2, rank=rank))
    x = rows()
    for row, found in zip(x.flatten(start_dim=1), block(x).flatten(start_dim=1), strict=True):
        crossed = row
        for layer in block.layers:
            product = layer[1].weight @ (layer[0].weight @ crossed) if rank else layer.weight @ crossed
            crossed = row * (product + (layer[1].bias if rank else layer.bias)) + crossed
        torch.testing.assert_close(found, crossed, rtol=1e-4, atol=1e-4)


def test_cross_by_hand_and_the_degree_of_its_products() -> None:
    one = Shape((Input("x", "number", "context", 1),), 1, 1)
    for layers, expected in ((1, 3 * 2 + 3), (2, 3 * 9 + 9), (3, 3 * 36 + 36)):  # x (w x + b) + x with w = 0, b = 2 ...
        block = Cross(one, layers=layers)
        for number, layer in enumerate(block.layers):
            layer.weight.data.fill_(float(number > 0))  # ... and from the second layer w = 1, b = 0
            layer.bias.data.fill_(0.0 if number else 2.0)
        assert block(torch.tensor([[[3.0]]])).item() == expected


def test_cross_of_full_rank_holds_as_many_numbers_as_its_matrices() -> None:
    count = {rank: sum(p.numel() for p in Cross(SHAPE, layers=2, rank=rank).parameters()) for rank in (0, 3)}
    assert count == {0: 2 * (12 * 12 + 12), 3: 2 * (2 * 3 * 12 + 12)}


def test_mlp_is_one_field_of_the_network() -> None:
    block = random(Mlp(SHAPE, layers=(6, 5)))
    x = rows()
    first, second = (m for m in block.network if isinstance(m, nn.Linear))
    hidden = (x.flatten(start_dim=1) @ first.weight.T + first.bias).clamp(min=0)
    torch.testing.assert_close(block(x), (hidden @ second.weight.T + second.bias).clamp(min=0)[:, None])
    assert (len(block.shape.inputs), block.shape.dim, block.shape.width) == (1, 5, 5)


def test_poso_gates_every_number_by_the_code_alone() -> None:
    block = random(Poso(SHAPE, code=["is_new"], layers=(6,)))
    x = rows()
    first, second = (m for m in block.network if isinstance(m, nn.Linear))
    hidden = (x[:, 2] @ first.weight.T + first.bias).clamp(min=0)
    gate = 2 / (1 + torch.exp(-(hidden @ second.weight.T + second.bias)))
    torch.testing.assert_close(block(x), x * gate.view(5, 3, 4))
    other = x.clone()
    other[:, :2] = 1.0
    torch.testing.assert_close(block(other)[:, :2], gate.view(5, 3, 4)[:, :2])  # the gate did not change


def test_poso_with_gates_at_one_half_changes_nothing() -> None:
    block = Poso(SHAPE, code=["is_new"])
    for parameter in block.parameters():
        parameter.data.zero_()
    assert torch.equal(block(rows()), rows())


def normalized(x: Tensor) -> Tensor:
    v = x.flatten(start_dim=1)
    return (v - v.mean(dim=1, keepdim=True)) / (v.var(dim=1, correction=0, keepdim=True) + 1e-5).sqrt()


def responsibilities(block: Prototypes, x: Tensor) -> Tensor:
    v = normalized(x)
    found = torch.zeros(len(v), len(block.centers))
    for row in range(len(v)):
        near = [torch.exp(-((v[row] - c) ** 2).sum() / (12 * block.temperature)) for c in block.centers]
        found[row] = torch.stack(near) / sum(near)
    return found


def test_a_prototype_enters_as_one_more_field() -> None:
    block = random(Prototypes(SHAPE, prototypes=3, temperature=0.5))
    x = rows()
    found = block(x)
    prototype = responsibilities(block, x) @ block.centers
    torch.testing.assert_close(found[:, 3], prototype @ block.field.weight.T + block.field.bias)
    assert torch.equal(found[:, :3], x)
    assert block.shape.inputs[:3] == SHAPE.inputs and block.shape.dim == 4


def test_the_penalty_pulls_each_center_to_the_mean_of_its_rows_and_moves_nothing_else() -> None:
    block = random(Prototypes(SHAPE, prototypes=3, temperature=0.5)).train()
    x = rows(20).requires_grad_()
    shares, v = responsibilities(block, x.detach()), normalized(x.detach())
    block(x)
    assert block.penalty is not None
    block.penalty.backward()
    squares = torch.stack([((v - c) ** 2).sum(dim=1) / 12 for c in block.centers], dim=1)
    torch.testing.assert_close(block.penalty, (shares * squares).sum(dim=1).mean())
    means = shares.T @ v / shares.sum(dim=0)[:, None]
    weight = 2 * shares.mean(dim=0)[:, None] / 12
    torch.testing.assert_close(block.centers.grad, weight * (block.centers - means), rtol=1e-4, atol=1e-6)
    assert x.grad is None and block.field.weight.grad is None


def test_the_tasks_move_the_input_and_the_field_and_no_center() -> None:
    block = random(Prototypes(SHAPE, prototypes=3, temperature=0.5))
    x = rows().requires_grad_()
    block(x)[:, 3].square().sum().backward()
    assert x.grad is not None and (x.grad != 0).any(dim=(1, 2)).all()
    assert block.field.weight.grad is not None and block.centers.grad is None


def test_descending_the_penalty_finds_the_clusters() -> None:
    patterns = torch.sign(rows(2, seed=3)).repeat(20, 1, 1)  # two kinds of row
    x = patterns + 0.05 * rows(40)
    block = Prototypes(SHAPE, prototypes=2).train()
    block.initialize("pfe", lambda name: rng.generator(0, name))
    block.centers.data *= 0.1
    optimizer = torch.optim.Adam([block.centers], lr=0.05)
    for _ in range(200):
        block(x)
        assert block.penalty is not None
        optimizer.zero_grad()
        block.penalty.backward()
        optimizer.step()
    shares = responsibilities(block, x)
    assert (shares.max(dim=1).values > 0.99).all()
    assert (shares[0::2].argmax(dim=1) != shares[1::2].argmax(dim=1)).all()


def test_outside_training_there_is_no_penalty() -> None:
    block = random(Prototypes(SHAPE))
    block.train()(rows())
    block.eval()(rows())
    assert block.penalty is None


@pytest.mark.parametrize(("name", "options"), CASES)
def test_stacked_replicas_give_what_each_gives_alone(name: str, options: dict[str, Any]) -> None:
    blocks = [random(BLOCKS[name](SHAPE, **options), seed).eval() for seed in range(3)]
    parameters, buffers = stack_module_state(blocks)
    x = torch.stack([rows(seed=seed) for seed in range(3)])
    stacked = vmap(lambda p, b, one: functional_call(blocks[0], (p, b), (one,)))(parameters, buffers, x)
    for number, block in enumerate(blocks):
        torch.testing.assert_close(stacked[number], block(x[number]), rtol=1e-4, atol=1e-4)


def test_stacked_penalties_have_the_gradients_of_each_alone() -> None:
    blocks = [random(Prototypes(SHAPE, prototypes=3), seed).train() for seed in range(3)]
    parameters, _ = stack_module_state(blocks)
    x = torch.stack([rows(seed=seed) for seed in range(3)])

    def penalty(own: dict[str, Tensor], one: Tensor) -> Tensor:
        functional_call(blocks[0], own, (one,))
        assert blocks[0].penalty is not None
        return blocks[0].penalty

    found = vmap(grad(penalty))({n: p.detach() for n, p in parameters.items()}, x)
    for number, block in enumerate(blocks):
        block(x[number])
        assert block.penalty is not None
        (alone,) = torch.autograd.grad(block.penalty, block.centers)
        torch.testing.assert_close(found["centers"][number], alone)
        assert not found["field.weight"].any()


@pytest.mark.parametrize(("name", "options"), CASES)
def test_blocks_can_be_exported_for_any_number_of_rows(name: str, options: dict[str, Any]) -> None:
    block = random(BLOCKS[name](SHAPE, **options)).eval()
    program = torch.export.export(block, (rows(),), dynamic_shapes=({0: torch.export.Dim("rows")},)).module()
    for count in (1, 5, 64):
        torch.testing.assert_close(program(rows(count)), block(rows(count)))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_row_does_not_depend_on_its_neighbors(name: str, options: dict[str, Any]) -> None:
    block, x = random(BLOCKS[name](SHAPE, **options)).eval(), rows(6)
    torch.testing.assert_close(block(x)[2:3], block(x[2:3]), rtol=1e-4, atol=1e-4)


def test_centers_start_apart_at_the_spread_of_the_input() -> None:
    block = Prototypes(SHAPE, prototypes=500)
    assert isinstance(block, Initialized)
    block.initialize("pfe", lambda name: rng.generator(0, name))
    assert block.centers.std().item() == pytest.approx(1.0, rel=0.05)
    assert len(block.centers.unique(dim=0)) == 500


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cross", {"layers": 0}, "block 'cross': layers = 0 must be at least 1"),
        ("cross", {"rank": -1}, "rank = -1 at least 0"),
        ("mlp", {"layers": ()}, r"block 'mlp': layers = \[\]"),
        ("mlp", {"dropout": 1.0}, "dropout = 1.0 at least 0 and below 1"),
        ("pfe", {"prototypes": 0}, "block 'pfe': prototypes = 0"),
        ("pfe", {"temperature": 0.0}, r"temperature = 0.0 above 0"),
        ("poso", {}, r"block 'poso' needs the fields its gates read: code = \[...\]; known: user, item, is_new"),
        ("poso", {"code": ["is_knew"]}, "field 'is_knew' is unknown. Did you mean 'is_new'"),
        ("poso", {"code": ["is_new"], "layers": (0,)}, "every width must be at least 1"),
    ],
)
def test_a_wrong_option_is_one_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        BLOCKS[name](SHAPE, **options)
    assert "\n" not in str(caught.value)
