"""Fast adaptive multitask optimization: losses that fall at an equal rate, seen from losses alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from polytask.balance import adam, present
from polytask.balance.base import Needs, Signal, State
from polytask.balance.options import check_count, check_number, each

_EPSILON = 1e-8


class Famo:
    """λ_t = c z_t / D_t with z = softmax(w), D_t = L_t − b_t + 10⁻⁸, c = 1 / Σ (z_t / D_t) (Liu et al., 2023).

    The weights sum to 1. After the update the losses L' of the same batch are evaluated once more, and w takes a step
    of Adam at the rate ``lr`` against (∂z/∂w)ᵀ (log D − log D') + ``weight_decay`` w: a task whose loss fell by less
    than the others' gains weight. ``min_loss`` is b, one number for all tasks or one each. One task alone has λ = 1. A
    loss at or below b − 10⁻⁸ is refused.
    """

    needs: Needs = "losses"
    scale_heads = True
    positive = True

    def __init__(
        self, *, lr: float = 0.025, weight_decay: float = 0.001, min_loss: float | Sequence[float] = 0.0
    ) -> None:
        check_number("lr", lr, 0.0, 1.0)
        check_number("weight_decay", weight_decay, 0.0, 1.0)
        self.lr, self.weight_decay, self.min_loss = lr, weight_decay, each(min_loss)
        for value in self.min_loss:
            check_number("min_loss", value, -1e12, 1e12)

    def start(self, tasks: int) -> State:
        """w [T] and what Adam keeps; as many ``min_loss`` as tasks, or it is a :class:`ConfigError`."""
        check_count("min_loss", self.min_loss, tasks)
        return adam.start(tasks)

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """c z_t / D_t [T]."""
        logs, wrong = self._logs(signal)
        # z / D over its sum is a softmax of w - log D
        return present.weigh(signal, present.softmax(state["value"] - logs, signal.present), wrong), state

    def after(self, signal: Signal, losses: Tensor, state: State) -> State:
        """w one step further, given the ``losses`` [T] of the batch after the update."""
        fell = self._logs(signal)[0] - self._logs(signal._replace(losses=losses))[0]
        z = present.softmax(state["value"], signal.present)
        slope = z * (fell - present.total(z * fell, signal.present)) + self.weight_decay * state["value"]
        return adam.step(state, slope, signal.present, self.lr)

    def _logs(self, signal: Signal) -> tuple[Tensor, Tensor]:
        """log D [T], and where there is none [T]; it is 0 there."""
        least = torch.tensor(self.min_loss, dtype=torch.float64, device=signal.losses.device)
        above = present.losses(signal) - least + _EPSILON
        wrong = signal.present & (above <= 0)
        return torch.where(wrong | ~signal.present, 1.0, above).log(), wrong
