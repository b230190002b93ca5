"""Weights that even out the scales of losses: by their size so far, their product, or the largest of them."""

from typing import Literal, get_args

import torch
from torch import Tensor

from polytask.balance import present
from polytask.balance.base import Needs, Signal, State
from polytask.balance.options import check_choice, check_number, check_whole

Size = Literal["average", "first_epoch"]


class LossScale:
    """λ_t = 1 / m_t: every loss is measured against its own size m_t.

    ``by = "average"``: m_t is the exponential moving average of L_t up to this batch, bias-corrected, with decay
    ``beta``; with ``beta = 0.0`` it is L_t, and the objective Σ log L_t. ``by = "first_epoch"``: the mean over the
    batches of the first epoch, up to now while it lasts. One task alone is trained
    with a loss of about 1. A size that is not above 0 is refused.
    """

    needs: Needs = "losses"
    scale_heads = True
    positive = True

    def __init__(self, *, by: Size = "average", beta: float = 0.99) -> None:
        check_choice("by", by, get_args(Size))
        check_number("beta", beta, 0.0, 0.999999)
        self.once = by == "first_epoch"
        self.keep = 1.0 if self.once else beta

    def start(self, tasks: int) -> State:
        """Decayed sum of the losses and of their number, and the first epoch a task was seen in (0: none yet)."""
        return {name: torch.zeros(tasks, dtype=torch.float64) for name in ("sum", "count", "epoch")}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """1 / m_t [T]."""
        epoch = torch.where(signal.present & (state["epoch"] == 0), signal.epoch.double(), state["epoch"])
        counts = signal.present & (epoch == signal.epoch) if self.once else signal.present
        added = torch.where(counts, self.keep * state["sum"] + present.losses(signal), state["sum"])
        number = torch.where(counts, self.keep * state["count"] + 1, state["count"])
        size = added / number.clamp(min=1.0)
        return present.weigh(signal, 1 / size, size <= 0), {"sum": added, "count": number, "epoch": epoch}


class Gls:
    """λ_t = GLS / (T L_t): the gradient of GLS = (Π L_t)^(1/T), the geometric mean (Chennupati et al., 2019).

    One task alone has λ = 1. A loss of 0 or below is refused.
    """

    needs: Needs = "losses"
    scale_heads = True
    positive = True

    def start(self, tasks: int) -> State:
        """Nothing is remembered."""
        return {}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """GLS / (T L_t) [T]."""
        losses, count = present.losses(signal), present.count(signal.present)
        wrong = losses <= 0
        logs = torch.where(wrong, 1.0, losses).log()
        mean = present.total(logs, signal.present) / count
        return present.weigh(signal, (mean - logs).exp() / count, wrong), state


class Stch:
    """The gradient of μ log Σ exp(L_t / (T μ)), a smooth maximum: smooth Tchebycheff (Lin et al., 2024).

    So it is with ``warmup = 0``: λ_t = softmax(L / (T μ))_t / T. Else log L_t stands for the loss: Σ log L_t is
    minimized for ``warmup`` epochs, the mean of the last of them is kept as the nadir n_t, and from then on it is
    T μ log Σ exp(log(L_t / n_t) / μ): λ_t = T softmax(log(L / n) / μ)_t / L_t. The smaller ``mu``, the nearer to the
    largest loss alone. The ideal point is 0. One task alone has λ = 1 without warm-up and 1 / L with it, where a loss
    of 0 or below is refused.
    """

    needs: Needs = "losses"
    scale_heads = True

    def __init__(self, *, mu: float = 1.0, warmup: int = 4) -> None:
        check_number("mu", mu, 0.001)
        check_whole("warmup", warmup, 0)
        self.mu, self.warmup = mu, warmup
        self.positive = warmup > 0

    def start(self, tasks: int) -> State:
        """Sum and number of the losses of the last warm-up epoch."""
        return {name: torch.zeros(tasks, dtype=torch.float64) for name in ("sum", "count")}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """λ [T] as above."""
        losses, count = present.losses(signal), present.count(signal.present)
        if not self.warmup:
            shares = present.softmax(losses / (count * self.mu), signal.present)
            return present.weigh(signal, shares / count), state
        wrong = losses <= 0
        safe = torch.where(wrong, 1.0, losses)
        counts = signal.present & (signal.epoch == self.warmup)
        added = torch.where(counts, state["sum"] + safe, state["sum"])
        number = torch.where(counts, state["count"] + 1, state["count"])
        # a task that was not seen in that epoch stands at its nadir
        nadir = torch.where(number > 0, added / number.clamp(min=1.0), safe)
        shares = present.softmax((safe / nadir).log() / self.mu, signal.present)
        over = torch.where(signal.epoch > self.warmup, count * shares, 1.0)
        return present.weigh(signal, over / safe, wrong), {"sum": added, "count": number}
