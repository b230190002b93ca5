"""A gate that learns by gradient which few experts a task reads."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from polytask.errors import ConfigError
from polytask.nn.bodies.experts import check_options
from polytask.nn.bodies.shape import Shape
from polytask.nn.layers import Draw, Experts, fill, mixture


class DSelectK(nn.Module):
    """DSelect-k: differentiable selection of at most ``k`` of the ``experts`` (Hazimeh et al., NeurIPS 2021).

    A :class:`Selection` per task weighs shared experts of hidden widths ``layers``. Without ``per_example`` it is
    the task's alone (static); with it, it depends on the row. All experts are computed, the selected or not.
    ``dropout`` follows every layer of an expert.

        penalty = Σ_t [``entropy`` · Σ_i H(r(z_i)) + Σ_i 1 / Σ_e r(z_i)_e]

    The first term drives the selectors to a decision; the second, only where the number of experts is no power of
    two, keeps them from choosing a code that no expert has. Where the authors' code sums over rows, this takes the
    mean, as of the losses.
    """

    penalty: Tensor | None = None

    def __init__(
        self,
        shape: Shape,
        *,
        experts: int = 4,
        k: int = 2,
        layers: Sequence[int] = (64,),
        per_example: bool = False,
        entropy: float = 0.01,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_options("dselect_k", {}, layers, dropout=dropout)
        if experts < 2 or not 1 <= k <= experts:
            raise ConfigError(
                f"body 'dselect_k': experts = {experts} must be at least 2 and k = {k} from 1 to that number"
            )
        if entropy < 0:
            raise ConfigError(f"body 'dselect_k': entropy = {entropy} must be at least 0")
        self.width, self.entropy = layers[-1], entropy
        self.experts = Experts(experts, [shape.width, *layers], dropout)
        width = shape.width if per_example else 0
        self.gates = nn.ModuleList(Selection(width, experts, k, reader=t) for t in range(shape.tasks))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Representations, T times [B, width], of embeddings [B, F, dim]."""
        v = x.flatten(start_dim=1)
        experts = self.experts(v)
        if self.training:
            costs = [gate.cost(v, self.entropy) for gate in self.gates if isinstance(gate, Selection)]
            self.penalty = torch.stack(costs).sum()
        return [mixture(gate(v), experts) for gate in self.gates]


class Selection(nn.Module):
    """q = Σ_i softmax(w)_i r(z_i), where each of ``k`` selectors i spells the number of an expert in m bits.

        r(z)_e = Π_b [S(z_b) if bit b of e is 1 else 1 − S(z_b)]      m = ⌈log2 experts⌉      S: :func:`smooth_step`

    Once all S are 0 or 1, at most k of q are not zero. With a ``width`` above 0, z and w are linear in the row,
    otherwise they are parameters. z starts near zero, where every expert gets the same.
    """

    codes: Tensor

    def __init__(self, width: int, experts: int, k: int, reader: int | None = None) -> None:
        super().__init__()
        self.experts, self.reader = experts, reader
        bits = (experts - 1).bit_length()
        codes = [[bool(e >> b & 1) for b in range(bits)] for e in range(experts)]
        self.register_buffer("codes", torch.tensor(codes), persistent=False)
        self.z, self.w = nn.Parameter(torch.zeros(k, bits)), nn.Parameter(torch.zeros(k))
        self.z_weight = nn.Parameter(torch.zeros(k, bits, width)) if width else None
        self.w_weight = nn.Parameter(torch.zeros(k, width)) if width else None

    def initialize(self, name: str, draw: Draw) -> None:
        """What makes z from U(-0.01, 0.01), what makes w from U(-0.05, 0.05): selectors must start different."""
        for part, parameter in self.named_parameters():
            bound = 0.01 if part.startswith("z") else 0.05
            fill(parameter, draw(f"{name}.{part}").uniform(-bound, bound, parameter.shape))

    def forward(self, x: Tensor) -> Tensor:
        """Shares [B, experts] of the gate's input x [B, width]; they sum to 1 if experts are a power of two."""
        w = self.w if self.w_weight is None else self.w + torch.einsum("bd,kd->bk", x, self.w_weight)
        q = torch.einsum("...k,...ke->...e", torch.softmax(w, dim=-1), self.selectors(x))
        return q.expand(x.shape[0], -1)

    def selectors(self, x: Tensor) -> Tensor:
        """r: how far each selector chooses each expert, [B, k, experts] of x [B, width] or, static, [k, experts]."""
        z = self.z if self.z_weight is None else self.z + torch.einsum("bd,kmd->bkm", x, self.z_weight)
        on = smooth_step(z)[..., None, :]
        # multiplied bit by bit: torch.prod looks for zeros among its values, which a traced program cannot
        return reduce(torch.mul, torch.where(self.codes, on, 1 - on).unbind(dim=-1))

    def cost(self, x: Tensor, entropy: float) -> Tensor:
        """What the gate adds to the penalty []: ``entropy`` · Σ_i H(r_i), and Σ_i 1 / Σ_e r_ie where codes are unused.

        The mean over rows x [B, width]. Small constants keep the logarithm finite and the quotient's slope bearable.
        """
        r = self.selectors(x)
        each = -entropy * (r * torch.log(r + 1e-6)).sum(dim=-1)
        if self.experts & (self.experts - 1):
            each = each + 1 / r.sum(dim=-1).clamp(min=1e-3)
        return each.sum(dim=-1).mean()


def smooth_step(t: Tensor) -> Tensor:
    """S(t) = −2t³ + 3t/2 + 1/2 between −1/2 and 1/2, 0 below and 1 above: a sigmoid that reaches its ends."""
    t = t.clamp(-0.5, 0.5)
    return -2 * t**3 + 1.5 * t + 0.5
