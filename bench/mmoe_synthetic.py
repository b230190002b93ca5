"""The task-correlation experiment of the MMoE paper (Ma et al., KDD 2018, section 3.2) on polytask's own bodies.

    python bench/mmoe_synthetic.py > docs/results/mmoe_synthetic.md      (5 to 8 minutes on one core; no data needed)

Every network sees fresh samples at each step. All seeds and correlations of a body are trained as one stack.
"""

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from polytask import rng
from polytask.data.synthetic_regression import FREQUENCIES, NOISE, PHASES, WIDTH, directions, response
from polytask.nn.bodies import BODIES, Shape
from polytask.nn.heads import TowerHead
from polytask.nn.layers import Initialized, initialize_linear
from polytask.schema import Input

SEEDS, CORRELATIONS = 16, (0.0, 0.5, 1.0)
STEPS, BATCH, RATE, ROWS = 2000, 64, 0.005, 4000
CHUNK = 50  # steps whose samples are drawn at a time
TOWER = (8,)
# 13,056 weights in body and towers: 8 experts of 16, or a shared layer of 113
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "shared_bottom": ("shared_bottom", {"layers": (113,)}),
    "omoe": ("omoe", {"experts": 8, "layers": (16,)}),
    "mmoe": ("mmoe", {"experts": 8, "layers": (16,)}),
    "cgc": ("cgc", {"experts": 2, "shared_experts": 4, "layers": (16,)}),
}


class Network(nn.Module):
    """A body that reads x [B, d] as d fields of width 1, and a tower for each of two tasks."""

    def __init__(self, body: str, options: Mapping[str, Any], tasks: int = 2) -> None:
        super().__init__()
        inputs = tuple(Input(f"x{n}", "number", "context", 1) for n in range(WIDTH))
        self.body = BODIES[body](Shape(inputs, 1, tasks, ("first", "second")[:tasks]), **options)
        self.towers = nn.ModuleList(TowerHead(self.body.width, TOWER, None) for _ in range(tasks))

    def forward(self, x: Tensor) -> Tensor:
        """Predictions [B, T]."""
        shown = self.body(x[..., None])
        return torch.stack([tower(z) for tower, z in zip(self.towers, shown, strict=True)], dim=-1)


class Separate(nn.Module):
    """A network of its own for each task."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList(Network("shared_bottom", {"layers": (width,)}, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Predictions [B, T]."""
        return torch.cat([network(x) for network in self.networks], dim=-1)


def started(network: nn.Module, seed: int) -> nn.Module:
    """The network with every parameter drawn for its name, as the model does."""

    def draw(name: str) -> np.random.Generator:
        return rng.generator(seed, f"init/{name}")

    for name, module in network.named_modules():
        if isinstance(module, Initialized):
            module.initialize(name, draw)
        elif isinstance(module, nn.Linear):
            initialize_linear(module, name, draw)
    return network


def networks(name: str) -> nn.Module:
    """The network called ``name`` in the table."""
    if name.startswith("single-task"):
        return Separate(int(name.split()[1]))
    return Network(*MODELS[name])


def samples(
    seeds: int, correlations: Sequence[float], steps: int, batch: int, purpose: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """``steps`` times x [R, B, d] and labels [R, B, 2] of R = seeds · correlations replicas; x belongs to the seed."""
    weights = np.stack(
        [[directions(p, WIDTH, rng.generator(s, "directions")) for p in correlations] for s in range(seeds)]
    ).astype(np.float32)
    waves = FREQUENCIES.astype(np.float32), PHASES.astype(np.float32)
    for start in range(0, steps, CHUNK):
        count = min(CHUNK, steps - start)
        draw = rng.generator(0, purpose, step=start)
        x = draw.standard_normal((count, seeds, batch, WIDTH), dtype=np.float32)
        clean = response(x[:, :, None] @ weights.swapaxes(-1, -2), *waves)
        labels = clean + np.float32(NOISE) * draw.standard_normal(clean.shape, dtype=np.float32)
        for one, label in zip(torch.from_numpy(x), torch.from_numpy(labels), strict=True):
            yield one.repeat_interleave(len(correlations), dim=0), label.flatten(end_dim=1)


def train(
    names: Sequence[str], seeds: int = SEEDS, correlations: Sequence[float] = CORRELATIONS, steps: int = STEPS
) -> dict[str, np.ndarray]:
    """Mean over the tasks of MSE / Var(y) [seeds, correlations] of each network after ``steps`` steps of Adam."""
    built = {name: [started(networks(name), s) for s in range(seeds) for _ in correlations] for name in names}
    plain = {name: made[0] for name, made in built.items()}
    state = {name: {n: p.detach() for n, p in stack_module_state(made)[0].items()} for name, made in built.items()}

    def total(state: dict[str, dict[str, Tensor]], x: Tensor, labels: Tensor) -> Tensor:
        def loss(name: str) -> Tensor:
            predicted = vmap(lambda own, rows: functional_call(plain[name], own, (rows,)))(state[name], x)
            return (predicted - labels).square().mean(dim=1).sum()

        return torch.stack([loss(name) for name in names]).sum()

    optimizer = torch.optim.Adam([p for own in state.values() for p in own.values()], lr=RATE, fused=True)
    step = None
    for x, labels in samples(seeds, correlations, steps, BATCH, "train"):
        if step is None:
            step = make_fx(grad(total))(state, x, labels)
        found = step(state, x, labels)
        for name, own in state.items():
            for part, parameter in own.items():
                parameter.grad = found[name][part].contiguous()
        optimizer.step()
    x, labels = next(samples(seeds, correlations, 1, ROWS, "test"))
    return {name: judged(plain[name], own, x, labels).reshape(seeds, -1) for name, own in state.items()}


def judged(network: nn.Module, state: Mapping[str, Tensor], x: Tensor, labels: Tensor) -> np.ndarray:
    """MSE / Var(y) [R], the mean over both tasks."""
    predicted = vmap(lambda own, rows: functional_call(network, own, (rows,)))(dict(state), x)
    relative = (predicted - labels).square().mean(dim=1) / labels.var(dim=1)
    return relative.mean(dim=1).numpy()


def table(results: Mapping[str, np.ndarray], other: str | None) -> Iterator[str]:
    """Lines of Markdown: medians, or against ``other`` the paired difference and the share of seeds that win."""
    yield "| | " + " | ".join(f"p = {p:g}" for p in CORRELATIONS) + " |"
    yield "|---|" + "---:|" * len(CORRELATIONS)
    for name, found in results.items():
        if other is None:
            cells = [f"{m:.4f}" for m in np.median(found, axis=0)]
        elif name == other:
            continue
        else:
            less = found - results[other]
            spread = less.std(axis=0, ddof=1) / len(less) ** 0.5
            wins = (less < 0).mean(axis=0)
            cells = [f"{m:+.4f} ± {s:.4f}, {w:.2f}" for m, s, w in zip(less.mean(axis=0), spread, wins, strict=True)]
        yield f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    torch.set_num_threads(1)
    results, seconds = {}, {}
    for name in ("single-task 113", "single-task 56", *MODELS):
        start = time.perf_counter()
        results |= train([name])
        seconds[name] = time.perf_counter() - start
    print("# Task correlation: the synthetic experiment of the MMoE paper\n")
    print(f"d = {WIDTH}, {SEEDS} seeds, fixed sines, Adam {RATE:g}, {STEPS:,} steps of {BATCH} fresh samples; error on")
    print(f"{ROWS:,} fresh rows, as MSE / Var(y), mean of both tasks. p is the cosine of the tasks' directions.")
    print("Each model has about 13,056 weights in body and towers; single-task N is a network of width N for each")
    print("task: 113 has twice the weights, 56 the same.")
    print(f"torch {torch.__version__}, {platform.machine()}, one thread. `python bench/mmoe_synthetic.py`\n")
    print("Median over seeds:\n", *table(results, None), sep="\n")
    for other in ("shared_bottom", "omoe"):
        print(f"\nPaired difference to {other} (mean over seeds ± standard error; share of seeds with less error):\n")
        print(*table(results, other), sep="\n")
    print("\nSeconds: " + ", ".join(f"{name} {s:.0f}" for name, s in seconds.items()))


if __name__ == "__main__":
    main()
