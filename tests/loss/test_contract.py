import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import ConfigError
from polytask.loss import LOSSES, Context, Loss, Observed, check_task, loss, make_loss, masked_mean, task_loss
from polytask.schema import Task
from polytask.testing import check_loss
from polytask.testing.losses import example, observed

STATIONARY = [n for n, e in LOSSES.items() if e.kind == "pointwise" and not e.given and n not in ("focal", "huber")]


def task(name: str, **more: object) -> Task:
    """The least task that takes the loss."""
    entry = LOSSES[name]
    head = "dot" if entry.kind in ("in_batch", "catalogue") else "tower"
    wanted = {"given": "click" if entry.given else None, "by": "duration" if entry.by else None, "head": head}
    return Task("t", entry.tasks[0], "label", loss=name, **(wanted | more))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_keeps_its_promises(name: str) -> None:
    check_loss(LOSSES[name])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("quantile", {"levels": (0.1, 0.5, 0.7)}),
        ("d2q", {"groups": 3}),
        ("tree", {"leaves": 4}),
        ("softmax", {"temperature": 0.2, "corrected": True}),
        ("escm_dr", {"clip": 0.3, "joint": 0.5}),
    ],
)
def test_so_it_does_with_other_options(name: str, options: dict[str, object]) -> None:
    check_loss(LOSSES[name], **options)


class Good(nn.Module):
    """A loss of a binary task; a broken one does one thing in another way."""

    outputs = 1

    def __init__(self, seen: Observed) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(seen.mean))

    def target(self, label: Tensor, context: Context) -> Tensor:
        return label

    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        return F.softplus(logits) - target * logits

    def predict(self, logits: Tensor, context: Context) -> Tensor:
        return torch.sigmoid(logits)

    def log_probability(self, logits: Tensor, context: Context) -> Tensor:
        return F.logsigmoid(logits)

    def start(self) -> list[float]:
        return [0.0]


class OneNumber(Good):
    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        return super().forward(logits, target, context).mean()


class Overflows(Good):
    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        return -target * torch.sigmoid(20 * logits).log() - (1 - target) * (1 - torch.sigmoid(20 * logits)).log()


class Constant(Good):
    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        return (logits - logits) + target


class Logit(Good):
    def predict(self, logits: Tensor, context: Context) -> Tensor:
        return logits


class OtherLog(Good):
    def log_probability(self, logits: Tensor, context: Context) -> Tensor:
        return F.logsigmoid(logits) - 1


class ReadsTheOrder(Good):
    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        return super().forward(logits, target, context) * (1 + torch.arange(len(logits)))


class ReadsTheBatch(Good):
    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        return super().forward(logits - logits.mean(dim=0), target, context)


class CountsMissing(Good):
    def target(self, label: Tensor, context: Context) -> Tensor:
        return label.nan_to_num(0.0)


class StartsTwice(Good):
    def start(self) -> list[float]:
        return [0.0, 0.0]


class StartsNowhere(Good):
    def __init__(self, seen: Observed) -> None:
        super().__init__(seen)
        self.at = float(seen.label.nanmean())

    def start(self) -> list[float]:
        return [self.at]


class IgnoresTheLabel(Good):
    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        return F.softplus(logits)


class KeepsTheRows(Good):
    def __init__(self, seen: Observed) -> None:
        super().__init__(seen)
        self.register_buffer("seen", seen.label)


class Doubles(Good):
    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        return super().forward(logits, target, context).double()


class Branches(Good):
    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        found = super().forward(logits, target, context)
        return found if bool((target == 1).any()) else found + 0


class NotABuffer(Good):
    def __init__(self, seen: Observed) -> None:
        super().__init__(seen)
        self.scale = 1 + seen.mean

    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        return self.scale * super().forward(logits, target, context)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (OneNumber, r"target and loss must be of shape \[B\]"),
        (Overflows, "a row's loss is not finite for logits 1 times as large"),
        (Constant, "no gradient reaches the logits"),
        (Logit, "predict must give probabilities"),
        (OtherLog, "log_probability is not the logarithm of predict"),
        (ReadsTheOrder, "rows in another order give another loss"),
        (ReadsTheBatch, "is not the mean of its rows'"),
        (CountsMissing, "a row without a label has a gradient"),
        (StartsTwice, "start must be one number per output"),
        (StartsNowhere, "start must be one number per output"),
        (IgnoresTheLabel, "logits of other rows, or of other items, give the same loss"),
        (KeepsTheRows, "the shapes of its buffers depend on the data"),
        (Doubles, "of float32 it makes torch.float64"),
        (Branches, "it cannot be stacked and traced: it must not depend on values"),
        (NotABuffer, "stacked with replicas it gives another loss than alone"),
    ],
)
def test_a_broken_promise_is_named(broken: type[Good], sentence: str) -> None:
    with pytest.raises(AssertionError, match=f"loss '{broken.__name__}': .*{sentence}") as caught:
        check_loss(Loss(broken, "pointwise", ("binary",)))
    assert "\n" not in str(caught.value)


def test_a_loss_of_ones_own_that_keeps_them_passes() -> None:
    check_loss(Loss(Good, "pointwise", ("binary",)))


@pytest.mark.parametrize("name", STATIONARY)
def test_the_start_is_the_constant_with_the_least_training_loss(name: str) -> None:
    entry = LOSSES[name]
    seen = observed(entry)
    spec = entry.make(seen)
    start = spec.start()
    assert start is not None and len(start) == spec.outputs
    point = torch.tensor(start, dtype=torch.float64)
    context = example(entry, spec.outputs, 1).context._replace(by=seen.by)

    def mean(point: torch.Tensor) -> float:
        logits = point.expand(len(seen.label), -1)
        return float(task_loss(spec, logits.squeeze(1) if spec.outputs == 1 else logits, seen.label, context))

    draw = torch.Generator().manual_seed(0)
    for size in (0.3, 0.1, 0.03):
        for _ in range(20):
            step = size * torch.randn(len(point), generator=draw, dtype=torch.float64)
            assert mean(point + step) > mean(point) - 1e-4


def test_masked_mean_counts_the_labelled_rows() -> None:
    per_row, known = torch.tensor([1.0, torch.nan, 3.0]), torch.tensor([True, False, True])
    assert masked_mean(per_row, known).item() == 2.0
    assert masked_mean(per_row, known).dtype == torch.float32
    assert masked_mean(per_row, known, torch.tensor([3.0, torch.nan, 1.0])).item() == 1.5


def test_masked_mean_shapes() -> None:
    with pytest.raises(ValueError, match=r"\[3\] and \[3, 1\]"):
        masked_mean(torch.ones(3), torch.ones(3, 1))


def test_an_unknown_loss() -> None:
    with pytest.raises(ConfigError, match=r"loss 'hubert' is unknown. Did you mean 'huber'\?"):
        loss("hubert")
    with pytest.raises(ConfigError, match="loss 'mes' is unknown"):
        check_task(Task("stars", "regression", "rating", loss="mes"))


def test_a_loss_that_does_not_fit_its_task() -> None:
    with pytest.raises(ConfigError) as caught:
        check_task(Task("stars", "regression", "rating", loss="bpr"))
    assert str(caught.value) == (
        "task 'stars': loss 'bpr' is for ranking tasks; regression takes: "
        "d2q, huber, log_mse, log_normal, mse, quantile, tree, weighted_logistic"
    )


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_fits_its_tasks(name: str) -> None:
    check_task(task(name))
    entry = LOSSES[name]
    if entry.given:
        with pytest.raises(ConfigError, match='name the condition with given = "task"'):
            check_task(task(name, given=None))
    if entry.by:
        with pytest.raises(ConfigError, match='name it with by = "column"'):
            check_task(task(name, by=None))
    if entry.kind in ("in_batch", "catalogue"):
        with pytest.raises(ConfigError, match='it needs head = "dot"'):
            check_task(task(name, head="tower"))


@pytest.mark.parametrize("kind", ["ranking", "regression", "binary"])
def test_the_default_loss_fits(kind: str) -> None:
    check_task(Task("t", kind, "label"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("hinge", {"margn": 1.0}, r"option 'margn' is unknown. Did you mean 'margin'\?"),
        ("mse", {"margin": 1.0}, "option 'margin' is unknown"),
        ("hinge", {"margin": -1.0}, "margin = -1 must be at least 0"),
        ("hinge", {"margin": "wide"}, "margin = 'wide' is not of the kind of 1.0"),
        ("bpr", {"hard": 1.5}, "hard = 1.5 is not of the kind of 0"),
        ("bpr", {"hard": -1}, "hard = -1 must be at least 0"),
        ("softmax", {"temperature": 0}, "temperature = 0 must be at least 0.001"),
        ("softmax", {"corrected": 1}, "corrected = 1 is not of the kind of False"),
        ("softmax", {"temperature": True}, "temperature = True is not of the kind of 1.0"),
        ("escm_ips", {"clip": 2.0}, "clip = 2 must be from 1e-06 to 1"),
        ("ordered", {"alpha": -0.1}, "alpha = -0.1 must be at least 0"),
        ("quantile", {"levels": [0.5]}, "must be two or more numbers that rise between 0 and 1"),
        ("quantile", {"levels": [0.5, 0.2]}, "must be two or more numbers that rise between 0 and 1"),
        ("quantile", {"levels": [0.5, 1.0]}, "must be two or more numbers that rise between 0 and 1"),
        ("quantile", {"levels": ["a", "b"]}, "must be two or more numbers that rise between 0 and 1"),
        ("d2q", {"groups": 0}, "groups = 0 must be from 1 to 10000"),
        ("tree", {"leaves": 12}, "leaves = 12 must be a power of 2 from 4 to 4096"),
        ("log_mse", {"unexplained": 1.5}, "unexplained = 1.5 must be from 0 to 1"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_the_task(name: str, options: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        make_loss(task(name, options=options), observed(LOSSES[name]))
    assert str(caught.value).startswith(f"task 't': loss '{name}'") and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["weighted_logistic", "log_mse", "log_normal", "quantile", "d2q", "tree"])
def test_seconds_below_zero_are_refused(name: str) -> None:
    seen = observed(LOSSES[name])
    seen.label[5] = -2.0
    with pytest.raises(ConfigError, match="needs labels of 0 seconds or more, not -2"):
        make_loss(task(name), seen)
