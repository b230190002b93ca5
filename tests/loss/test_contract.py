import pytest
import torch
from contract import (
    check_all_missing,
    check_missing,
    check_rows,
    check_stacked,
    check_traced,
    check_values,
    check_weights,
    example,
    observed,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from polytask.errors import ConfigError
from polytask.loss import LOSSES, check_task, loss, make_loss, masked_mean, task_loss
from polytask.schema import Task

STATIONARY = [n for n, e in LOSSES.items() if e.kind == "pointwise" and not e.given and n not in ("focal", "huber")]


def task(name: str, **more: object) -> Task:
    """The least task that takes the loss."""
    entry = LOSSES[name]
    head = "dot" if entry.kind in ("in_batch", "catalogue") else "tower"
    wanted = {"given": "click" if entry.given else None, "by": "duration" if entry.by else None, "head": head}
    return Task("t", entry.tasks[0], "label", loss=name, **(wanted | more))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_are_finite(name: str) -> None:
    check_values(LOSSES[name])


@pytest.mark.parametrize("name", LOSSES)
@given(rows=st.integers(1, 65), seed=st.integers(0, 10**6))
@settings(max_examples=6)
def test_a_batch_is_the_mean_of_its_rows_in_any_order(name: str, rows: int, seed: int) -> None:
    check_rows(LOSSES[name], rows, seed)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("wild", [0.0, 1e30])
def test_rows_without_a_label_do_not_count(name: str, wild: float) -> None:
    check_missing(LOSSES[name], wild)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_labels_is_zero(name: str) -> None:
    check_all_missing(LOSSES[name])


@pytest.mark.parametrize("name", LOSSES)
def test_stacked_replicas_are_single_ones(name: str) -> None:
    check_stacked(LOSSES[name])


@pytest.mark.parametrize("name", LOSSES)
def test_a_symbolic_trace_serves_other_values(name: str) -> None:
    check_traced(LOSSES[name])


@pytest.mark.parametrize("name", [n for n, e in LOSSES.items() if e.kind != "in_batch"])
def test_a_row_weight_is_a_number_of_rows(name: str) -> None:
    check_weights(LOSSES[name])


@pytest.mark.parametrize("name", LOSSES)
def test_logits_belong_to_their_labels(name: str) -> None:
    entry = LOSSES[name]
    spec = entry.make(observed(entry))
    one = example(entry, spec.outputs, 50)
    turned = one._replace(logits=one.logits.roll(1, dims=0))
    if entry.tasks == ("ranking",) and entry.kind == "pairwise":
        turned = one._replace(logits=one.logits.roll(1, dims=1))
    assert abs(float(task_loss(spec, *turned) - task_loss(spec, *one))) > 1e-3


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


@pytest.mark.parametrize("name", LOSSES)
def test_buffers_have_the_same_shape_whatever_the_data(name: str) -> None:
    entry = LOSSES[name]
    first, second = (entry.make(observed(entry, seed, rows)) for seed, rows in ((0, 400), (1, 23)))
    shapes = [{n: b.shape for n, b in s.named_buffers()} for s in (first, second)]  # type: ignore[attr-defined]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", LOSSES)
def test_single_precision_stays_single(name: str) -> None:
    entry = LOSSES[name]
    seen = observed(entry)
    spec = entry.make(seen._replace(label=seen.label.float(), by=seen.by.float()))
    logits, label, context = example(entry, spec.outputs, 9)
    parts = (None if p is None or not p.is_floating_point() else p.float() for p in context)
    context = context._replace(**{n: p for n, p in zip(context._fields, parts, strict=True) if p is not None})
    value = task_loss(spec, logits.float(), label.float(), context)
    assert value.dtype == torch.float32
    double = task_loss(entry.make(seen), logits, label, example(entry, spec.outputs, 9).context)
    assert float(value) == pytest.approx(float(double), rel=1e-3)


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
