"""Sub-networks in levels, and connections between them that are learned to be open or closed."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.errors import ConfigError, did_you_mean
from polytask.nn.bodies.experts import check_options
from polytask.nn.bodies.shape import Shape
from polytask.nn.layers import Draw, Experts, Uniform, fill

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # temperature and ends of the stretched interval, of Louizos et al.


class Snr(nn.Module):
    """SNR: sub-network routing (Ma et al., AAAI 2019).

    Each of ``levels`` has ``experts`` sub-networks, MLPs of hidden widths ``layers``, each layer followed by
    ``dropout``. Those of the first level read all embeddings; then sub-network i reads what level below and connections
    z_ij in [0, 1] give it, and at last so does task i:

        ``routing = "trans"``: Σ_j z_ij W_ij u_j      ``routing = "aver"``: Σ_j z_ij u_j
        penalty = ``sparsity`` · Σ P(z_ij > 0), the expected number of open connections (L0)

    z are :class:`HardConcrete`, drawn anew for every row in training, where the paper may draw once for a batch:
    the same expectation with less variance. Otherwise they are fixed, and a connection can be exactly closed.
    """

    penalty: Tensor | None = None

    def __init__(
        self,
        shape: Shape,
        *,
        experts: int = 4,
        layers: Sequence[int] = (64,),
        levels: int = 2,
        routing: str = "trans",
        sparsity: float = 1e-4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_options("snr", {"experts": experts, "levels": levels}, layers, dropout=dropout)
        if sparsity < 0:
            raise ConfigError(f"body 'snr': sparsity = {sparsity} must be at least 0")
        if routing not in ("trans", "aver"):
            raise ConfigError("body 'snr': " + did_you_mean("routing", routing, ("trans", "aver")))
        self.width, self.sparsity = layers[-1], sparsity
        widths = [shape.width, *[self.width] * (levels - 1)]
        self.levels = nn.ModuleList(Experts(experts, [width, *layers], dropout) for width in widths)
        readers: list[list[int | None]] = [[None] * experts for _ in range(levels - 1)] + [[*range(shape.tasks)]]
        transform = self.width if routing == "trans" else 0
        self.connections = nn.ModuleList(Connections(experts, each, transform) for each in readers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Representations, T times [B, width], of embeddings [B, F, dim]."""
        u = x.flatten(start_dim=1)
        for level, connections in zip(self.levels, self.connections, strict=True):
            u = connections(level(u))
        if self.training:
            found = [m.expected() for m in self.modules() if isinstance(m, HardConcrete)]
            self.penalty = self.sparsity * torch.stack(found).sum()
        return list(u.unbind(dim=1))


class Connections(nn.Module):
    """Input of each of the I ``readers`` (a task's number, or None) from the outputs of ``experts`` below it.

    Σ_j z_ij W_ij u_j, with matrices W [I, E, width, width]; with ``width`` 0 without them.
    """

    def __init__(self, experts: int, readers: Sequence[int | None], width: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(HardConcrete(experts, reader) for reader in readers)
        self.weight = nn.Parameter(torch.zeros(len(readers), experts, width, width)) if width else None

    def initialize(self, name: str, draw: Draw) -> None:
        """W from U(-1/sqrt(fan_in), 1/sqrt(fan_in)): a reader is a linear layer over all outputs below it."""
        if self.weight is not None:
            _, experts, width, _ = self.weight.shape
            bound = (experts * width) ** -0.5
            fill(self.weight, draw(f"{name}.weight").uniform(-bound, bound, self.weight.shape))

    def forward(self, u: Tensor) -> Tensor:
        """[B, I, width] of u [B, E, width]."""
        z = torch.stack([gate(u) for gate in self.gates], dim=1)
        if self.weight is None:
            return torch.einsum("bij,bjh->bih", z, u)
        return torch.einsum("bij,bjd,ijdh->bih", z, u, self.weight)


class HardConcrete(nn.Module):
    """``experts`` numbers z in [0, 1] that are 0 or 1 with a probability above 0 (Louizos et al., ICLR 2018).

        s = σ((ln u − ln(1 − u) + ln α) / β)  with u ~ U(0, 1)      z = min(1, max(0, s (ζ − γ) + γ))

    Without chance s = σ(ln α). ``alpha`` holds ln α. It starts near 0: in training five of six connections are at
    least partly open, otherwise all are half open. ``reader`` is the task that reads through them, or None.
    """

    def __init__(self, experts: int, reader: int | None = None) -> None:
        super().__init__()
        self.experts, self.reader = experts, reader
        self.alpha = nn.Parameter(torch.zeros(experts))
        self.uniform = Uniform(experts)

    def initialize(self, name: str, draw: Draw) -> None:
        """Start ln α from N(0, 0.01^2)."""
        fill(self.alpha, draw(f"{name}.alpha").standard_normal(self.alpha.shape) * 0.01)

    def forward(self, x: Tensor) -> Tensor:
        """How far each connection is open, [B, experts], for rows x [B, ...]; they need not sum to 1."""
        chance = self.uniform()
        s = torch.sigmoid(self.alpha if chance is None else (torch.logit(chance, eps=1e-6) + self.alpha) / BETA)
        return (s * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0).expand(x.shape[0], -1)

    def expected(self) -> Tensor:
        """Expected number [] of connections that are not closed: Σ σ(ln α − β ln(−γ/ζ))."""
        return torch.sigmoid(self.alpha - BETA * math.log(-GAMMA / ZETA)).sum()
