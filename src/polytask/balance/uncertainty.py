"""Weights that are learned along with the model: by uncertainty, and impartially."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from polytask.balance import adam, present
from polytask.balance.base import Needs, Signal, State
from polytask.balance.options import check_choice, check_count, check_number, each

Form = Literal["half", "whole"]

_SECOND_DECAY = 0.9  # with Adam's 0.999 a first loss of 1000 would hold s back for thousands of steps


class Uncertainty:
    """λ_t = a e^(−s_t), where s_t = log σ_t² minimizes Σ a e^(−s_t) L_t + s_t / 2 (Kendall, Gal, Cipolla, 2018).

    ``form``, one for all tasks or one each: a is 1/2 for ``"half"``, which the paper derives for regression and most
    implementations take for every loss, and 1 for ``"whole"``, which it derives for classification. Adam
    (β₂ = 0.9) moves s_t from 0 at the rate ``lr``, after the batch, within ±``bound``. It settles where e^s = 2 a L.
    One task alone is trained with a loss whose scale goes to 1/2. A loss
    below 0 is refused.
    """

    needs: Needs = "losses"
    scale_heads = True
    positive = True

    def __init__(self, *, form: Form | Sequence[Form] = "half", lr: float = 0.01, bound: float = 15.0) -> None:
        _check(lr, bound)
        self.form, self.lr, self.bound = each(form), lr, bound
        for name in self.form:
            check_choice("form", name, get_args(Form))

    def start(self, tasks: int) -> State:
        """s [T] and what Adam keeps; as many ``form`` as tasks, or it is a :class:`ConfigError`."""
        check_count("form", self.form, tasks)
        return adam.start(tasks)

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """a e^(−s_t) [T], s before its step."""
        factors = [0.5 if name == "half" else 1.0 for name in self.form]
        factor = torch.tensor(factors, dtype=torch.float64, device=signal.losses.device)
        losses = present.losses(signal)
        weights = factor * (-state["value"]).exp()
        learned = _learn(state, 0.5 - weights * losses, signal, self.lr, self.bound)
        return present.weigh(signal, weights, losses < 0), learned


class ImtlL:
    """λ_t = e^(s_t), where s_t minimizes Σ e^(s_t) L_t − s_t: IMTL-L (Liu et al., 2021).

    Adam (β₂ = 0.9) moves s_t from 0 at the rate ``lr``, after the batch, within ±``bound``. It settles where
    e^s = 1 / L: every weighted loss is 1. One task alone is trained with a loss
    whose scale goes to 1. A loss below 0 is refused.
    """

    needs: Needs = "losses"
    scale_heads = True
    positive = True

    def __init__(self, *, lr: float = 0.01, bound: float = 15.0) -> None:
        _check(lr, bound)
        self.lr, self.bound = lr, bound

    def start(self, tasks: int) -> State:
        """s [T] and what Adam keeps."""
        return adam.start(tasks)

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """e^(s_t) [T], s before its step."""
        losses = present.losses(signal)
        weights = state["value"].exp()
        learned = _learn(state, weights * losses - 1, signal, self.lr, self.bound)
        return present.weigh(signal, weights, losses < 0), learned


def _check(lr: float, bound: float) -> None:
    check_number("lr", lr, 0.0, 1.0)
    check_number("bound", bound, 0.0, 80.0)  # e^80 is near the end of float32


def _learn(state: State, slope: Tensor, signal: Signal, lr: float, bound: float) -> State:
    """One step of Adam; the bound keeps a loss that goes to 0 from taking its weight to infinity."""
    learned = adam.step(state, slope, signal.present, lr, _SECOND_DECAY)
    return learned | {"value": learned["value"].clamp(-bound, bound)}
