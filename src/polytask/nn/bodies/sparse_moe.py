"""Experts of which a task reads a few per row, and penalties that keep all of them in use."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import ConfigError
from polytask.nn.bodies.shape import Shape
from polytask.nn.layers import Draw, Experts, Uniform, fill


class Routed(NamedTuple):
    """Logits [B, T, E] without and with noise, and the noise's standard deviation, None for a router without."""

    clean: Tensor
    noisy: Tensor
    scale: Tensor | None


class SparseMoe(nn.Module):
    """Sparsely gated mixture of experts with noisy top-``k`` gates (Shazeer et al., ICLR 2017), one per task.

        H = x W_g + ε ∘ scale,   scale = softplus(x W_n) + 0.01,   ε ~ N(0, 1) in training only
        y_t = Σ_e G_te expert_e(x),   G_t = softmax of the k largest of H_t, 0 elsewhere

    The ``experts``, MLPs of hidden widths ``layers``, are shared by the tasks, and the penalty balances the union of
    the tasks' gates: all experts are to be in use, but a task may keep to some of its own.

        k > 1    penalty = ``balance`` · [CV(importance)² + CV(load)²]      importance_e = Σ_rows Σ_t G_te
                 load_e = Σ_rows [1 − Π_t (1 − P_te)],  P_te = Φ(((x W_g)_te − threshold_te) / scale_te)
        k = 1    penalty = ``balance`` · E · Σ_e f_e P_e, as in Switch (Fedus et al., 2022)
        both     + ``z_loss`` · mean(logsumexp(x W_g)²), as in ST-MoE (Zoph et al., 2022)

    P_te is the probability that gate t picks e if the noise of e is drawn again, f the fraction of rows and tasks
    routed to e, P the mean of softmax(H). With k = 1 an expert's share is its softmax over all, as in Switch: over
    one alone it is 1, and the router would get no gradient. Without ``noise`` there is no load term.
    ``balance`` is by default 0.1, with k = 1 0.01.

    All experts are computed for all rows, and those not picked weighed by 0: for tens of experts that is usually
    faster than sending rows to them, and there is no capacity that could overflow. The router computes in float32.
    """

    penalty: Tensor | None = None

    def __init__(
        self,
        shape: Shape,
        *,
        experts: int = 8,
        k: int = 2,
        layers: Sequence[int] = (64,),
        noise: bool = True,
        balance: float | None = None,
        z_loss: float = 1e-3,
    ) -> None:
        super().__init__()
        self.balance = (0.01 if k == 1 else 0.1) if balance is None else balance
        if not 1 <= k <= experts or not layers or min(layers) < 1:
            raise ConfigError(
                f"body 'sparse_moe': k = {k} must be from 1 to experts = {experts}, "
                f"layers = {list(layers)} one or more widths of at least 1"
            )
        if min(self.balance, z_loss) < 0:
            raise ConfigError(f"body 'sparse_moe': balance = {balance} and z_loss = {z_loss} must be at least 0")
        self.k, self.z_loss, self.width = k, z_loss, layers[-1]
        self.router = Router(shape.width, shape.tasks, experts, noise)
        self.gates = nn.ModuleList(TopK(experts, k, reader=t) for t in range(shape.tasks))
        self.experts = Experts(experts, [shape.width, *layers])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Representations, T times [B, width], of embeddings [B, F, dim]."""
        v = x.flatten(start_dim=1)
        routed = self.router(v)
        shares = torch.stack([gate(h) for gate, h in zip(self.gates, routed.noisy.unbind(dim=1), strict=True)], dim=1)
        if self.training:
            self.penalty = self.balance * self._imbalance(routed, shares) + self.z_loss * z_loss(routed.clean)
        return list(torch.einsum("bte,beh->tbh", shares.to(v.dtype), self.experts(v)).unbind(dim=0))

    def _imbalance(self, routed: Routed, shares: Tensor) -> Tensor:
        """The penalty [] of shares [B, T, E], without its weight."""
        if self.k == 1:
            return switch_loss(shares, torch.softmax(routed.noisy, dim=-1))
        found = squared_variation(shares.sum(dim=(0, 1)))
        if routed.scale is not None and self.k < self.experts.count:
            found = found + squared_variation(union(picked(routed, self.k)).sum(dim=0))
        return found


class Router(nn.Module):
    """Logits of every task's gate: x W_g, and with ``noise`` ε ∘ (softplus(x W_n) + 0.01) beside them.

    W_n starts at zero as in the paper; W_g, there zero too, near it, so that no row is a draw between experts. The
    floor under the scale is that of the paper's code: it keeps the load finite.
    """

    def __init__(self, width: int, tasks: int, experts: int, noise: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(tasks, experts, width))
        self.noise_weight = nn.Parameter(torch.zeros(tasks, experts, width)) if noise else None
        self.uniform = Uniform(tasks * experts) if noise else None

    def initialize(self, name: str, draw: Draw) -> None:
        """W_g from N(0, 0.01^2), as every gate; W_n at zero."""
        fill(self.weight, draw(f"{name}.weight").standard_normal(self.weight.shape) * 0.01)
        if self.noise_weight is not None:
            self.noise_weight.data.zero_()

    def forward(self, x: Tensor) -> Routed:
        """Logits, in float32, of rows x [B, width]."""
        x = x.float()
        clean = torch.einsum("bd,ted->bte", x, self.weight.float())
        if self.noise_weight is None or self.uniform is None:
            return Routed(clean, clean, None)
        scale = F.softplus(torch.einsum("bd,ted->bte", x, self.noise_weight.float())) + 0.01
        chance = self.uniform()
        if chance is None:
            return Routed(clean, clean, scale)
        normal = torch.special.ndtri(chance.float().clamp(1e-6, 1 - 1e-6)).view(clean.shape)
        return Routed(clean, clean + normal * scale, scale)


class TopK(nn.Module):
    """softmax over the ``k`` largest of ``experts`` logits; for k = 1 the largest share of the softmax over all."""

    def __init__(self, experts: int, k: int, reader: int | None = None) -> None:
        super().__init__()
        self.experts, self.k, self.reader = experts, k, reader

    def forward(self, logits: Tensor) -> Tensor:
        """Shares [B, experts], all but k of a row 0, of logits [B, experts]."""
        chosen = torch.topk(logits, self.k, dim=-1).indices
        kept = torch.zeros_like(logits).scatter(-1, chosen, 1.0)
        if self.k == 1:
            return torch.softmax(logits, dim=-1) * kept
        return torch.softmax(logits.masked_fill(kept == 0, -torch.inf), dim=-1)


def picked(routed: Routed, k: int) -> Tensor:
    """P [B, T, E]: the probability that an expert is among the k largest if only its own noise is drawn again.

    The threshold is the k-th largest of the other experts' logits: the k-th of all, or the next for one of the k.
    """
    assert routed.scale is not None
    largest = torch.topk(routed.noisy, k + 1, dim=-1).values
    last, next_to_last = largest[..., k - 1, None], largest[..., k, None]
    threshold = torch.where(routed.noisy > next_to_last, next_to_last, last)
    found: Tensor = torch.special.ndtr((routed.clean - threshold) / routed.scale)
    return found


def union(probabilities: Tensor) -> Tensor:
    """[B, E]: the probability that at least one of the tasks' independent gates picks, of [B, T, E]."""
    none = torch.ones_like(probabilities[:, 0])
    for each in probabilities.unbind(dim=1):
        none = none * (1 - each)
    return 1 - none


def squared_variation(amounts: Tensor) -> Tensor:
    """CV²: variance over squared mean of ``amounts`` [E], 0 if all are equal."""
    return amounts.var(correction=0) / (amounts.mean() ** 2 + 1e-10)


def switch_loss(shares: Tensor, probabilities: Tensor) -> Tensor:
    """E Σ_e f_e P_e of top-1 shares and probabilities [B, T, E]: 1 at its least, when all are used alike."""
    routed = (shares > 0).to(shares.dtype).mean(dim=(0, 1))
    return shares.shape[-1] * (routed * probabilities.mean(dim=(0, 1))).sum()


def z_loss(logits: Tensor) -> Tensor:
    """mean(logsumexp(logits)²) of router logits [..., E]: keeps them small, where float32 is exact."""
    return torch.logsumexp(logits, dim=-1).square().mean()
