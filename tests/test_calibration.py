import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from polytask.calibration import CALIBRATIONS, Calibration, Isotonic, Platt, fit_calibration, from_dict
from polytask.errors import ConfigError, DataError, TrainingError
from polytask.metrics import metric

KINDS = list(CALIBRATIONS)


def miscalibrated(rows: int = 20_000, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions whose log-odds are twice too large and off by one, the labels, and the true probabilities."""
    draw = torch.Generator().manual_seed(seed)
    score = torch.randn(rows, generator=draw)
    true = torch.sigmoid(score)
    return torch.sigmoid(2 * score + 1), (torch.rand(rows, generator=draw) < true).float(), true


def small(seed: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions with ties and extremes, labels of both classes, weights."""
    draw = torch.Generator().manual_seed(seed)
    prediction = torch.randint(0, 11, (rows,), generator=draw).double() / 10
    label = (torch.rand(rows, generator=draw) < 0.2 + 0.6 * prediction).double()
    label[:2] = torch.tensor([0.0, 1.0])
    return prediction, label, torch.randint(1, 5, (rows,), generator=draw).double()


@pytest.mark.parametrize("kind", KINDS)
def test_a_miscalibrated_generator_is_mended(kind: str) -> None:
    prediction, label, _ = miscalibrated()
    fitted = fit_calibration(kind, prediction, label)
    other, other_label, other_true = miscalibrated(seed=1)
    mended = fitted.apply(other)
    for name in ("ece", "ne"):
        before, after = (float(metric(name)(p, other_label)) for p in (other, mended))
        assert after < before
    assert float(metric("ece")(other, other_label)) > 0.15
    assert float(metric("ece")(mended, other_label)) < 0.02
    assert float((mended - other_true).abs().mean()) < 0.03
    assert mended.dtype == other.dtype


def test_platt_finds_the_map_that_made_the_rows() -> None:
    prediction, label, _ = miscalibrated(200_000)
    fitted = Platt.fit(prediction.double(), label.double(), torch.ones(len(label)).double())
    assert fitted.slope == pytest.approx(0.5, abs=0.01)
    assert fitted.shift == pytest.approx(-0.5, abs=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_platt_is_at_the_minimum_of_its_loss(seed: int) -> None:
    prediction, label, weight = small(seed, 60)
    fitted = Platt.fit(prediction, label, weight)
    share = weight / weight.mean()
    positives, negatives = float((share * label).sum()), float((share * (1 - label)).sum())
    target = torch.where(label == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    logit = torch.logit(prediction, eps=1e-7)

    def loss(at: Any) -> float:
        score = at[0] * logit + at[1]
        return float((share * (torch.nn.functional.softplus(score) - target * score)).mean())

    found = minimize(loss, [0.1, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14, "maxiter": 4000})
    assert [fitted.slope, fitted.shift] == pytest.approx(found.x.tolist(), abs=1e-5)


def test_platt_of_separable_rows_is_finite() -> None:
    prediction, label = torch.tensor([0.1, 0.2, 0.8, 0.9]), torch.tensor([0.0, 0, 1, 1])
    found = fit_calibration("platt", prediction, label).apply(prediction)
    assert found.tolist() == pytest.approx([0.25, 0.25, 0.75, 0.75], abs=0.06)  # Platt's targets for 2 of each


def test_platt_never_turns_the_order_around() -> None:
    prediction, label, _ = miscalibrated()
    fitted = fit_calibration("platt", 1 - prediction, label)
    assert isinstance(fitted, Platt) and fitted.slope == 0
    assert fitted.apply(prediction[:3]).tolist() == pytest.approx([float(label.mean())] * 3, abs=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_isotonic_agrees_with_scikit_learn(seed: int) -> None:
    prediction, label, weight = small(seed, 40)
    fitted = fit_calibration("isotonic", prediction, label, weight)
    oracle = IsotonicRegression(out_of_bounds="clip").fit(prediction.numpy(), label.numpy(), weight.numpy())
    grid = torch.linspace(-0.2, 1.2, 200, dtype=torch.float64)
    assert fitted.apply(grid).tolist() == pytest.approx(oracle.predict(grid.numpy()).tolist(), abs=1e-12)


def test_isotonic_by_hand() -> None:
    prediction, label = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.6]), torch.tensor([0.0, 1, 0, 1, 1])
    fitted = fit_calibration("isotonic", prediction.double(), label)
    assert isinstance(fitted, Isotonic)
    assert fitted.predictions == pytest.approx((0.1, 0.2, 0.3, 0.4, 0.6))
    assert fitted.values == (0.0, 0.5, 0.5, 1.0, 1.0)
    between = fitted.apply(torch.tensor([0.15, 0.25, 0.35, 0.9, 0.0], dtype=torch.float64))
    assert between.tolist() == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.0])


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 10**6), rows=st.integers(2, 50))
@settings(deadline=None, max_examples=40)
def test_no_two_predictions_change_places(kind: str, seed: int, rows: int) -> None:
    fitted = fit_calibration(kind, *small(seed, rows))
    grid = torch.rand(500, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).sort().values
    for at in (grid, grid.float()):
        found = fitted.apply(at)
        assert bool((found.diff() >= 0).all())
        assert bool(((found >= 0) & (found <= 1)).all())


@pytest.mark.parametrize("kind", KINDS)
def test_auc_changes_by_ties_alone(kind: str) -> None:
    prediction, label, _ = miscalibrated(2000)
    fitted = fit_calibration(kind, prediction, label)
    other, other_label, _ = miscalibrated(2000, seed=1)
    mended = fitted.apply(other.double())
    before, after = (float(metric("auc")(p, other_label)) for p in (other, mended))
    positive, negative = mended[other_label == 1, None], mended[None, other_label == 0]
    tied = float((positive == negative).double().mean())
    assert abs(after - before) <= tied / 2 + 1e-12
    assert tied == 0 or kind == "isotonic"


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_prediction_becomes_the_base_rate(kind: str) -> None:
    prediction, label = torch.full((1000,), 0.9), (torch.arange(1000) % 4 == 0).float()
    fitted = fit_calibration(kind, prediction, label)
    assert fitted.apply(prediction).tolist() == pytest.approx([0.25] * 1000, abs=2e-3)
    if kind == "platt":  # a shift, so that other predictions keep their order
        assert isinstance(fitted, Platt) and fitted.slope == 1


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_label_or_weight_do_not_count(kind: str) -> None:
    prediction, label, weight = small(0, 50)
    wider = [torch.cat([t, t[:6]]) for t in (prediction, label, weight)]
    wider[1][-6:-3], wider[2][-3:] = torch.nan, 0
    wider[0][-6:] = 0.37
    assert fit_calibration(kind, *wider) == fit_calibration(kind, prediction, label, weight)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_counts_as_repeated_rows(kind: str) -> None:
    prediction, label, weight = small(1, 50)
    times = weight.long()
    repeated = fit_calibration(kind, prediction.repeat_interleave(times), label.repeat_interleave(times))
    weighted = fit_calibration(kind, prediction, label, weight)
    if kind == "isotonic":
        assert weighted.apply(prediction).tolist() == pytest.approx(repeated.apply(prediction).tolist(), abs=1e-12)
    else:  # the number of rows smooths the targets, so only the sum of weights may not matter
        assert fit_calibration(kind, prediction, label, 100 * weight).to_dict() == pytest.approx(weighted.to_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays_nan_and_shapes_stay(kind: str) -> None:
    fitted = fit_calibration(kind, *small(2, 50))
    found = fitted.apply(torch.tensor([[0.5, math.nan], [0.0, 1.0]]))
    assert found.isnan().tolist() == [[False, True], [False, False]]
    assert fitted.apply(torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize("kind", KINDS)
def test_it_survives_strict_json(kind: str) -> None:
    fitted = fit_calibration(kind, *small(3, 50))
    text = json.dumps(fitted.to_dict(), allow_nan=False)
    read = from_dict(json.loads(text))
    assert read == fitted
    grid = torch.linspace(0, 1, 50)
    assert torch.equal(read.apply(grid), fitted.apply(grid))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("label", "what"),
    [
        ([1.0, 1, math.nan], "every label is 1"),
        ([0.0, 0, 0], "every label is 0"),
        ([math.nan] * 3, "no row has a label"),
    ],
)
def test_one_class_is_a_data_error(kind: str, label: list[float], what: str) -> None:
    with pytest.raises(DataError) as caught:
        fit_calibration(kind, torch.tensor([0.1, 0.2, 0.3]), torch.tensor(label))
    assert what in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_values_and_shapes_raise() -> None:
    prediction, label = torch.tensor([0.1, 0.9]), torch.tensor([0.0, 1.0])
    with pytest.raises(ConfigError, match="Did you mean 'platt'"):
        fit_calibration("plat", prediction, label)
    with pytest.raises(ValueError, match="labels 0 or 1"):
        fit_calibration("platt", prediction * 2, label)
    with pytest.raises(ValueError, match="labels 0 or 1"):
        fit_calibration("platt", prediction, label * 2)
    with pytest.raises(ValueError, match=r"must be \[N\], not \[2\], \[2, 1\], \[2, 1\]"):
        fit_calibration("platt", prediction, label[:, None])
    with pytest.raises(TrainingError, match="1 of 2 predictions are not finite"):
        fit_calibration("isotonic", torch.tensor([0.1, math.nan]), label)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ({"kind": "plat"}, "Did you mean 'platt'"),
        ({}, "calibration 'None' is unknown"),
        ({"kind": "platt", "slope": 1.0}, "key 'shift' is missing"),
        ({"kind": "platt", "slope": 1.0, "shfit": 0.0}, "Did you mean 'shift'"),
        ({"kind": "platt", "slope": -1.0, "shift": 0.0}, "slope = -1.0 must be finite and >= 0"),
        ({"kind": "platt", "slope": math.nan, "shift": 0.0}, "slope = nan"),
        ({"kind": "platt", "slope": "1", "shift": 0.0}, "calibration 'platt'"),
        ({"kind": "isotonic", "predictions": [0.1, 0.1], "values": [0.0, 1.0]}, "predictions must ascend"),
        ({"kind": "isotonic", "predictions": [0.1, 0.2], "values": [1.0, 0.0]}, "never falls"),
        ({"kind": "isotonic", "predictions": [0.1, 0.2], "values": [0.0, math.nan]}, "never falls"),
        ({"kind": "isotonic", "predictions": [], "values": []}, "predictions must ascend"),
        ({"kind": "isotonic", "predictions": [0.5], "values": [2.0]}, "all in 0..1"),
    ],
)
def test_a_damaged_map_is_refused(value: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(value)
    assert what in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_names_itself(kind: str) -> None:
    fitted: Calibration = fit_calibration(kind, *small(0, 30))
    assert fitted.to_dict()["kind"] == kind
    assert type(fitted) is CALIBRATIONS[kind]
