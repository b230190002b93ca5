"""Dynamic weight average: more weight for the task whose loss falls more slowly."""

import torch
from torch import Tensor

from polytask.balance import present
from polytask.balance.base import Needs, Signal, State
from polytask.balance.options import check_number


class Dwa:
    """λ = T softmax(r / τ), r_t the ratio of the mean losses of the last two epochs (Liu, Johns, Davison, 2019).

    λ = 1 until a task has two epochs behind it; its epochs are those in which it was present. ``temperature`` is τ:
    the higher, the more even the weights. One task alone has λ = 1. An epoch's mean below 0 is refused.
    """

    needs: Needs = "losses"
    scale_heads = True
    positive = True

    def __init__(self, *, temperature: float = 2.0) -> None:
        check_number("temperature", temperature, 0.001)
        self.temperature = temperature

    def start(self, tasks: int) -> State:
        """Sum and number of the losses of the running epoch, its number, and the means of the two before (0: none)."""
        names = ("sum", "count", "epoch", "last", "before")
        return {name: torch.zeros(tasks, dtype=torch.float64) for name in names}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """T softmax(r / τ) [T], the same throughout an epoch."""
        state = self._turned(signal, state)
        last, before = state["last"], state["before"]
        rate = torch.where(before > 0, last / torch.where(before > 0, before, 1.0), 1.0)
        shares = present.softmax(rate / self.temperature, signal.present)
        wrong = torch.minimum(last, before) < 0
        added = {"sum": state["sum"] + present.losses(signal), "count": state["count"] + 1}
        kept = {name: torch.where(signal.present, value, state[name]) for name, value in added.items()}
        return present.weigh(signal, present.count(signal.present) * shares, wrong), state | kept

    def _turned(self, signal: Signal, state: State) -> State:
        """The state once the tasks that are present for the first time in an epoch have closed the one before."""
        new = signal.present & (signal.epoch > state["epoch"])
        none = torch.zeros_like(state["sum"])
        mean = state["sum"] / state["count"].clamp(min=1.0)
        opened = {
            "sum": none,
            "count": none,
            "epoch": none + signal.epoch,
            "last": mean,
            "before": state["last"],
        }
        return {name: torch.where(new, opened[name], state[name]) for name in state}
