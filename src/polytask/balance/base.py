"""What every balancer sees and offers, and how one is chosen."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

from torch import Tensor

from polytask.errors import ConfigError, did_you_mean

Needs = Literal["losses", "gramian", "jacobian"]
Level = Literal["parameters", "tables"]
State = dict[str, Tensor]


class Signal(NamedTuple):
    """What a balancer sees of one step of one model.

    A balancer that needs losses alone sees all T tasks: ``losses`` [T], of which those with ``present`` [T] False
    have weight 0 or no label in the batch. One that needs gradients sees the n present tasks only, whose numbers are
    ``tasks`` [n]: ``losses`` [n] and ``gramians`` [P, n, n], the products of the tasks' gradients on each of the P
    shared parameters, tables first and the last shared layer last; ``jacobian`` [n, D] holds the gradients on
    the shared dense parameters for those that need it. Gradients, and the losses beside them, contain the task's own
    weight; the losses of a balancer that needs no more do not: there it multiplies what the balancer gives.
    ``epoch`` [] counts from 1; ``noise`` [T, T] (or [n, n]) is drawn from N(0, 1) anew in every step.
    """

    losses: Tensor
    present: Tensor
    epoch: Tensor
    noise: Tensor
    tasks: Tensor | None = None
    gramians: Tensor | None = None
    jacobian: Tensor | None = None

    @property
    def gramian(self) -> Tensor:
        """Products [n, n] of the tasks' gradients on all shared parameters."""
        assert self.gramians is not None
        return self.gramians.sum(dim=0)


class Balancer(Protocol):
    """A rule that gives each task its weight; without attributes that change: what it remembers is its ``state``.

    With ``needs = "losses"`` it works under ``torch.func.vmap`` and tracing, so it never looks at values; otherwise
    it gets plain float64 tensors of two tasks or more, none of whose gradients is zero. ``scale_heads``: whether
    the weights also act on parameters that only one task reads.

    Further attributes, if true: ``constant`` (the weights are always 1), ``unitary`` (own weights above 0 count as 1),
    ``random`` (it reads ``noise``), ``positive`` (it refuses losses that are not positive, by weights that are not
    finite), ``by_parameter`` (it gives weights [P, n]).
    """

    needs: Needs
    scale_heads: bool

    def start(self, tasks: int) -> State:
        """What is remembered before the first step, for ``tasks`` tasks; every tensor float64."""

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """Weights [T] (needs losses) or [n] or, one per shared parameter, [P, n]; and what to remember."""


@runtime_checkable
class Looking(Protocol):
    """A balancer that looks at the same batch once more after the update, at the price of a forward pass."""

    def after(self, signal: Signal, losses: Tensor, state: State) -> State:
        """What to remember, given the ``signal`` before the update and the ``losses`` [T] after it."""


@dataclass(frozen=True)
class Balance:
    """The choice of a balancer: its ``kind`` by name, its ``options`` (a mapping, kept as pairs), and how it is fed.

    ``at``: where a Gramian is taken, on the shared ``"parameters"`` or more cheaply at the output of the ``"tables"``.
    ``share``: of the batch's rows it is taken on; by default all for the parameters, where it is then exact, and an
    eighth for the tables, where it is a sum over the rows. ``every``: steps between two askings of a balancer that
    needs gradients; the weights stand in between. ``scale_heads`` overrides the method's own choice.
    """

    kind: str = "fixed"
    options: Mapping[str, Any] | tuple[tuple[str, Any], ...] = field(default_factory=dict)
    at: Level = "parameters"
    every: int = 1
    share: float | None = None
    scale_heads: bool | None = None

    def __post_init__(self) -> None:
        pairs = sorted(dict(self.options).items())
        object.__setattr__(self, "options", tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in pairs))
        if self.at not in get_args(Level):
            raise ConfigError(did_you_mean("balance.at", self.at, get_args(Level)))
        if self.every < 1 or not 0 < self.rows <= 1:
            raise ConfigError(f"balance: every = {self.every} must be at least 1, share = {self.share} in (0, 1]")

    @property
    def rows(self) -> float:
        """The share of the batch's rows that a Gramian is taken on."""
        if self.share is not None:
            return self.share
        return 1.0 if self.at == "parameters" else 0.125

    @property
    def exact(self) -> bool:
        """Whether every step has the tasks' gradients of its whole batch on the parameters."""
        return self.at == "parameters" and self.every == 1 and self.rows == 1
