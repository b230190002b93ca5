"""A balancer at work on a stack of R replicas: what it is shown, what it remembers, and the weights in force."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import vmap

from polytask import rng
from polytask.balance import Balance, Looking, Signal, State, make_balancer
from polytask.gradients import Gradient, Point, Programs

_LEAST = 1e-30  # a task whose squared gradient is not above this share of the largest has none


class Balancing:
    """The ``balance`` of R replicas with ``own`` weights [R, T] of their tasks, drawing from the replicas' ``seeds``.

    A task of weight 0 is not trained and not balanced; a replica that trains one task alone is trained plainly.
    """

    def __init__(self, balance: Balance, own: Tensor, seeds: Sequence[int]) -> None:
        self.balance, self.seeds = balance, list(seeds)
        self.balancer = make_balancer(balance)
        self.own = (own > 0).to(own.dtype) if getattr(self.balancer, "unitary", False) else own
        asked = balance.scale_heads
        self.scale_heads = self.balancer.scale_heads if asked is None else asked
        start = self.balancer.start(own.shape[1])
        self.state: State = {n: torch.stack([t] * len(own)) for n, t in start.items()}
        self.weights = self.own.clone()  # in force on what tasks share; [R, T]

    @property
    def reads_gradients(self) -> bool:
        """Whether the balancer is shown gradients; in a stack of single-task replicas there is nothing to balance."""
        return self.balancer.needs != "losses" and self._balanced

    @property
    def constant(self) -> bool:
        """Whether the weights are the tasks' own, always."""
        return bool(getattr(self.balancer, "constant", False)) or not self._balanced

    @property
    def looks(self) -> bool:
        """Whether the balancer looks at the losses once more after an update."""
        return isinstance(self.balancer, Looking) and self._balanced

    @property
    def _balanced(self) -> bool:
        return bool(((self.own > 0).sum(dim=1) > 1).any())

    @property
    def trained(self) -> tuple[int, ...]:
        """The tasks that some replica trains."""
        return tuple((self.own > 0).any(dim=0).nonzero().flatten().tolist())

    def due(self, step: int) -> bool:
        """Whether a balancer of gradients is asked in ``step``, counted from 0 over the whole training."""
        return step % self.balance.every == 0

    def noise(self, moment: tuple[int, int]) -> Tensor:
        """Numbers [R, T, T] from N(0, 1) for one (epoch, step); zeros for a balancer without chance."""
        count = self.own.shape[1]
        if not getattr(self.balancer, "random", False):
            return torch.zeros(len(self.own), count, count, dtype=torch.float64)
        drawn = [rng.generator(s, "balance", *moment).standard_normal((count, count)) for s in self.seeds]
        return torch.stack([torch.from_numpy(d) for d in drawn])

    def traced(self, programs: Programs, point: Point, moment: tuple[int, int]) -> tuple[Tensor, Gradient]:
        """Losses [R, T] and gradient in one pass, the weights given by the losses inside it."""
        inputs = self.own, self.noise(moment), _epoch(moment), self.state
        losses, self.weights, self.state, gradient = programs.weighed(point, self._weigh, *inputs)
        return losses, gradient

    def weigh_now(self, losses: Tensor, moment: tuple[int, int]) -> Tensor:
        """Weights [R, T] by the losses [R, T] alone."""
        self.weights, self.state = self._weigh(losses, self.own, self.noise(moment), _epoch(moment), self.state)
        return self.weights

    def _weigh(self, losses: Tensor, own: Tensor, noise: Tensor, epoch: Tensor, state: State) -> tuple[Tensor, State]:
        """Weights [R, T], in a form that can be traced, and what is remembered."""
        present = _present(losses, own)

        def one(losses: Tensor, present: Tensor, noise: Tensor, state: State) -> tuple[Tensor, State]:
            return self.balancer.weights(Signal(losses, present, epoch, noise), state)

        found, remembered = vmap(one)(losses, present, noise, state)
        alone = (own > 0).sum(dim=1, keepdim=True) < 2
        return torch.where(alone, 1.0, found).to(own.dtype) * own, remembered

    def after(self, losses: Tensor, again: Tensor, moment: tuple[int, int]) -> None:
        """Show the losses [R, T] ``again``, after the update, to a balancer that looks."""
        balancer, epoch = self.balancer, _epoch(moment)
        assert isinstance(balancer, Looking)

        def one(losses: Tensor, present: Tensor, again: Tensor, state: State) -> State:
            return balancer.after(Signal(losses, present, epoch, torch.zeros(0)), again, state)

        self.state = vmap(one)(losses, _present(losses, self.own), again, self.state)

    def refuses(self, losses: Tensor, names: Sequence[str]) -> str:
        """Why the balancer cannot weigh the ``losses`` [R, T] of the tasks ``names``, if it cannot."""
        low = ((losses <= 0) & _present(losses, self.own)).nonzero()
        if not getattr(self.balancer, "positive", False) or not len(low):
            return ""
        value, name = losses[tuple(low[0])], names[int(low[0][1])]
        return f"loss of task '{name}' is {value:g}, and balance '{self.balance.kind}' needs losses that are positive"

    def ask(
        self,
        losses: Tensor,
        gramians: Tensor,
        jacobian: Callable[[int], Tensor] | None,
        moment: tuple[int, int],
    ) -> Tensor:
        """Weights [R, P, T] on P shared parameters by their ``gramians`` [R, P, T, T], own weights included.

        ``jacobian`` gives the gradients [T, D] of a replica. ``weights`` [R, T] then holds the mean over the
        parameters, for the steps until the next asking.
        """
        own = self.own.double()
        gramians = gramians * (own[:, :, None] * own[:, None, :])[:, None]
        noise, epoch = self.noise(moment), _epoch(moment)
        found = torch.zeros(gramians.shape[:3], dtype=torch.float64)
        for replica, products in enumerate(gramians):
            squares = products.sum(dim=0).diagonal()
            tasks = ((own[replica] > 0) & (squares > _LEAST * squares.max())).nonzero().flatten()
            if len(tasks) < 2:
                found[replica][:, tasks] = 1.0
                continue
            rows = None
            if self.balancer.needs == "jacobian" and jacobian is not None:
                rows = jacobian(replica)[tasks] * own[replica, tasks, None]
            signal = Signal(
                (losses[replica].double() * own[replica])[tasks],
                torch.ones(len(tasks), dtype=torch.bool),
                epoch,
                noise[replica][tasks][:, tasks],
                tasks,
                products[:, tasks][:, :, tasks],
                rows,
            )
            weights, state = self.balancer.weights(signal, {n: t[replica] for n, t in self.state.items()})
            found[replica][:, tasks] = weights.expand(len(products), -1)
            self._remember(replica, state)
        found *= own[:, None]
        self.weights = found.mean(dim=1).to(self.own.dtype)
        return found

    def _remember(self, replica: int, state: State) -> None:
        for name, value in state.items():
            if self.state[name].shape[1:] != value.shape:  # what grows at the first step
                self.state[name] = value.new_zeros(len(self.own), *value.shape)
            self.state[name][replica] = value

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor a resumed run needs, by name."""
        return {f"balance/{n}": t for n, t in self.state.items()} | {"weights": self.weights}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`tensors` gave."""
        self.state = {n: tensors[f"balance/{n}"].clone() for n in self.state}
        self.weights = tensors["weights"].clone()


def _epoch(moment: tuple[int, int]) -> Tensor:
    return torch.tensor(float(moment[0]), dtype=torch.float64)


def _present(losses: Tensor, own: Tensor) -> Tensor:
    """Tasks [R, T] that are trained and have a label in the batch: without one a loss is 0."""
    return (own > 0) & (losses != 0)
