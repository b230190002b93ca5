"""Which cause is named for a harm, by evidence that was put in."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from polytask.affinity import TOTAL, Affinity, Reading
from polytask.causes import Harm, causes
from polytask.diagnose import diagnose
from polytask.evidence import evidence
from polytask.run import Run, TrainConfig
from polytask.schema import Schema, Task
from polytask.transfer import transfers

SEEDS = range(5)
PLAN = Schema((Task("first", "regression", label="a"), Task("second", "regression", label="b")))
TABLE, TRUNK = "tables.0[item]", "trunks.0.body.network.0"
Errors = tuple[float, float]  # mse of the first and of the second task


def affinity(cosine: float, norms: Sequence[float], reliability: float = 0.5) -> Affinity:
    """Gradients with a ``cosine`` without noise, the same within and between the halves."""
    signal = torch.tensor([[1.0, cosine], [cosine, 1.0]]) * reliability
    noise = torch.eye(2) * (1 - reliability)
    products = torch.cat([torch.cat([signal + noise, signal], dim=1), torch.cat([signal, signal + noise], dim=1)])
    weights = torch.tensor(norms)
    return Affinity.of(products, weights, weights)


def probe(step: int, groups: dict[str, float], norms: Sequence[float] = (1.0, 1.0), reliability: float = 0.5) -> Any:
    found = {n: affinity(c, norms, reliability) for n, c in groups.items()}
    total = affinity(sum(groups.values()) / len(groups), norms, reliability)
    return Reading(
        step, PLAN.task_names, (1.0, 1.0), (1.0, 1.0), -1.0, 0.0, ((0.1, 0.0), (0.0, 0.1)), total, found
    ).to_dict()


def runs(
    name: str,
    errors: Errors,
    probes: Sequence[Any] = (),
    weights: Errors = (1.0, 1.0),
    kept: Errors | None = None,
    **design: Any,
) -> list[Run]:
    """Five runs of three epochs: the own best one is the second, the third is kept."""
    found = []
    for seed in SEEDS:
        shift = 0.01 * seed + (0.001 * seed if weights == (1.0, 1.0) else 0.0)
        at = {1: (2.0, 2.0), 2: errors, 3: kept or errors}
        history = []
        for epoch, values in at.items():
            scores = {t: {"mse": v + shift} for t, v in zip(PLAN.task_names, values, strict=True)}
            history.append({"epoch": epoch, "train": {"first": 1.0, "second": 1.0}, "valid": scores, "test": scores})
        history[0]["probe"] = list(probes)
        found.append(
            Run(
                name=name,
                schema=PLAN,
                weights=dict(zip(PLAN.task_names, weights, strict=True)),
                config=TrainConfig(seed=seed),
                design={"body": "shared_bottom", "dim": 4, "share": "shared", "options": ()} | design,
                history=history,
                kept=3,
                own={"first": 2, "second": 2},
                seconds=1.0,
                parameters=1,
            )
        )
    return found


def alone(width: int = 0) -> list[Run]:
    end = ", wider" if width else ""
    first = runs(f"first alone{end}", (1.0, 1.0), weights=(1.0, 0.0), dim=4 + width)
    return [*first, *runs(f"second alone{end}", (1.0, 1.0), weights=(0.0, 1.0), dim=4 + width)]


def named(*settings: list[Run]) -> list[Harm]:
    every = [r for group in settings for r in group]
    by_name = {n: [r for r in every if r.name == n] for n in dict.fromkeys(r.name for r in every)}
    return causes(by_name, transfers(by_name))


HARMED = (1.0, 1.5)
APART = {TABLE: 0.0, TRUNK: 0.0}


@pytest.mark.parametrize(
    ("probes", "cause"),
    [
        ([probe(n, APART, (100.0, 1.0)) for n in range(4)], "loss scale"),
        ([probe(n, {TABLE: -0.5, TRUNK: 0.2}) for n in range(4)], "embedding interference"),
        ([probe(n, {TABLE: -0.5, TRUNK: -0.5}) for n in range(4)], "conflicting gradients"),
        ([probe(n, {TABLE: 0.3, TRUNK: -0.5}) for n in range(4)], "conflicting gradients"),
        ([probe(n, {TABLE: -0.5}) for n in range(4)], "conflicting gradients"),
        ([probe(n, APART) for n in range(4)], "unexplained"),
        ([], "unexplained"),
    ],
)
def test_the_evidence_names_the_cause(probes: list[Any], cause: str) -> None:
    (found,) = named(runs("joint", HARMED, probes), alone())
    assert (found.setting, found.task, found.cause) == ("joint", "second", cause)
    assert "\n" not in found.text and found.remedy.startswith("polytask compare ")


def test_harm_that_a_wider_trunk_heals_is_too_little_capacity() -> None:
    probes = [probe(n, {TABLE: -0.4, TRUNK: -0.4}) for n in range(4)]
    joint = runs("joint", HARMED, probes)
    healed = runs("joint, wider", (1.0, 1.02), probes, dim=12)
    (found,) = named(joint, alone(), healed, alone(8))
    assert found.cause == "capacity" and "-2" in found.text
    still = runs("joint, wider", (1.0, 1.4), probes, dim=12)
    assert [h.cause for h in named(joint, alone(), still, alone(8))] == ["conflicting gradients"]


def test_harm_at_the_kept_epoch_alone_is_early_stopping() -> None:
    probes = [probe(n, {TABLE: -0.4, TRUNK: -0.4}) for n in range(4)]
    (found,) = named(runs("joint", (1.0, 1.0), probes, kept=(1.0, 1.5)), alone())
    assert found.cause == "early stopping" and "not what was shared" in found.text


def test_half_a_harm_left_at_the_own_best_epoch_is_no_matter_of_stopping() -> None:
    (found,) = named(runs("joint", (1.0, 1.3), kept=(1.0, 1.5)), alone())
    assert found.cause != "early stopping"


def test_nobody_pays_and_nothing_is_named() -> None:
    assert named(runs("joint", (1.0, 0.9), [probe(1, {TABLE: -0.9, TRUNK: -0.9})]), alone()) == []


def test_a_conflict_without_a_wider_trunk_is_said_to_look_like_too_little_capacity() -> None:
    (found,) = named(runs("joint", HARMED, [probe(n, {TRUNK: -0.5}) for n in range(4)]), alone())
    assert "compare.wider = true" in found.text


def test_the_remedy_names_the_configuration_beside_the_runs(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("", "utf-8")
    joint = [replace(r, folder=tmp_path / "runs" / "joint-seed0") for r in runs("joint", HARMED)]
    (found,) = named(joint, alone())
    assert str(tmp_path / "config.toml") in found.remedy


def test_the_diagnosis_tells_cause_remedy_and_relation() -> None:
    every = [*runs("joint", HARMED, [probe(n, APART, (100.0, 1.0)) for n in range(4)]), *alone()]
    by_name = {n: [r for r in every if r.name == n] for n in dict.fromkeys(r.name for r in every)}
    findings = {f.kind: f for f in diagnose(by_name, transfers(by_name))}
    assert findings["loss scale"].remedy and "unrelated: 'first' and 'second' (+0.00" in findings["relation"].text


def test_noise_unrelated_and_conflict_are_different_answers() -> None:
    def relation(cosine: float, reliability: float) -> str:
        found = evidence(runs("joint", HARMED, [probe(n, {TRUNK: cosine}, reliability=reliability) for n in range(4)]))
        assert found is not None
        return found.cosines[TOTAL][0].relation

    assert relation(0.0, 0.5) == "unrelated"
    assert relation(0.0, 0.001) == "noise"
    assert relation(-0.5, 0.5) == "conflict" and relation(0.5, 0.5) == "aligned"


def test_probes_after_the_best_epochs_are_not_read() -> None:
    early, late = [probe(n, {TRUNK: 0.5}) for n in range(4)], [probe(9 + n, {TRUNK: -0.9}) for n in range(9)]
    joint = runs("joint", HARMED, early)
    for run in joint:
        run.history[2]["probe"] = late
        run.kept = 2
    found = evidence(joint)
    assert found is not None and found.probes == 4 * len(SEEDS)
    assert found.cosines[TOTAL][0].relation == "aligned"
