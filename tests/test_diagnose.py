import re
from dataclasses import replace
from typing import Any

import pytest

from polytask.diagnose import Finding, diagnose, no_effect
from polytask.nn.design import Design
from polytask.run import Run, TrainConfig
from polytask.schema import Schema, Task
from polytask.transfer import transfer

SCHEMA = Schema(
    (Task("watch", "ranking", head="dot"), Task("rating", "regression", label="rating")), user="u", item="i"
)
EPOCHS = (1, 11, 15, 200)
SEEDS = (0, 1, 2)
# Best and last values of the published exercise's four settings, and how far its three splits lie apart.
REFERENCE = {
    "shared .5/.5": ((0.5, 0.5), "shared", (0.0400, 0.0590, 0.0593, 0.0569), (1.20, 0.8535, 0.87, 2.469)),
    "separate .5/.5": ((0.5, 0.5), "separate", (0.0567, 0.1200, 0.1346, 0.1324), (1.20, 0.8530, 0.87, 2.430)),
    "shared .99/.01": ((0.99, 0.01), "shared", (0.0567, 0.1200, 0.1311, 0.1284), (1.25, 0.90, 0.8463, 0.997)),
    "separate .99/.01": ((0.99, 0.01), "separate", (0.0567, 0.1200, 0.1346, 0.1320), (1.20, 0.8530, 0.87, 2.425)),
}
SPLIT = {"watch": (0.0, 0.005, -0.004), "rating": (0.0, 0.03, -0.02)}
NOISE = {"watch": (0.0, 0.0006, -0.0005), "rating": (0.001, -0.002, 0.0015)}


def run(name: str, weights: tuple[float, float], share: str, mrr: Any, mse: Any, seed: int = 0, **config: Any) -> Run:
    """A made-up run: the metrics at EPOCHS, shifted by its split; training losses that fall to .11."""
    shift = {t: SPLIT[t][seed % 3] + (NOISE[t][seed % 3] if all(weights) else 0) for t in SPLIT}
    history = []
    for number, epoch in enumerate(EPOCHS):
        values = {"watch": ("mrr", mrr[number]), "rating": ("mse", mse[number])}
        test = {t: {m: v + shift[t]} for (t, (m, v)), w in zip(values.items(), weights, strict=True) if w}
        losses = dict.fromkeys(test, (1.4, 0.5, 0.4, 0.11)[number])
        history.append({"epoch": epoch, "train": losses | {"joint": sum(losses.values())}, "test": test})
    return Run(
        name=name,
        schema=SCHEMA,
        weights=dict(zip(("watch", "rating"), weights, strict=True)),
        config=TrainConfig(**{"seed": seed, "epochs": 200} | config),
        design=Design(share=share)._asdict(),  # type: ignore[arg-type]
        history=history,
        kept=200,
        own={},
        seconds=1.0,
        parameters=92_964,
    )


def reference(**config: Any) -> dict[str, list[Run]]:
    return {
        name: [run(name, weights, share, mrr, mse, seed, **config) for seed in SEEDS]
        for name, (weights, share, mrr, mse) in REFERENCE.items()
    }


def baselines() -> list[Run]:
    _, _, mrr, mse = REFERENCE["separate .5/.5"]
    both = (("watch alone", (1.0, 0.0)), ("rating alone", (0.0, 1.0)))
    return [run(name, weights, "shared", mrr, mse, seed) for name, weights in both for seed in SEEDS]


def found() -> list[Finding]:
    settings = reference()
    everything = settings | {"watch alone": baselines()[:3], "rating alone": baselines()[3:]}
    return diagnose(everything, [transfer(runs, baselines()) for runs in settings.values()])


def of(kind: str, findings: list[Finding]) -> list[Finding]:
    return [f for f in findings if f.kind == kind]


def test_the_reference_experiment_is_negative_transfer_on_ranking_and_leaves_the_rating_unharmed() -> None:
    whole = transfer(reference()["shared .5/.5"], baselines())
    watch, rating = whole.tasks["watch"].own, whole.tasks["rating"].own
    assert watch.verdict == "negative transfer" and watch.mean == pytest.approx(-0.0753, abs=1e-3)
    assert watch.relative == pytest.approx(-0.56, abs=0.01)
    assert rating.verdict == "equivalent"
    assert not whole.seesaw


def test_separate_settings_are_single_task_models_whose_weights_have_no_effect() -> None:
    names = ("separate .5/.5", "separate .99/.01")
    (alone,) = of("single-task", found())
    assert alone.settings == names and alone.task is None
    assert alone.text.startswith("'separate .5/.5' and 'separate .99/.01' share no parameter between tasks")
    assert "each run is 2 single-task models side by side" in alone.text
    (idle,) = of("no effect", found())
    assert idle.settings == names
    assert idle.text.startswith(
        "Nothing is shared and the optimizer is Adam, so loss weights have no effect on any task."
    )
    assert "Between weights 0.5/0.5 and 0.99/0.01 on equal seeds" in idle.text
    assert "0.0004 in mrr of 'watch', 0.005 in mse of 'rating'" in idle.text


def test_overfitting_is_told_with_its_epochs_and_numbers() -> None:
    findings = {f.settings[0]: f for f in of("overfitting", found()) if f.task == "rating"}
    assert set(findings) == {*REFERENCE, "rating alone"}
    text = findings["shared .5/.5"].text
    assert "'rating' overfits after epoch 11: until epoch 200 its training loss falls from 0.500 to 0.110" in text
    assert re.search(r"mse on test data rises from 0\.85\d+ to 2\.47\d* \(1(8|9)\d% of the best\)", text)
    assert not [f for f in of("overfitting", found()) if f.task == "watch"]  # 4 % below its best is no sentence


def test_a_metric_that_is_better_higher_falls() -> None:
    one = run("a", (1.0, 1.0), "shared", (0.05, 0.2, 0.19, 0.1), (1.0, 1.0, 1.0, 1.0))
    (finding,) = of("overfitting", diagnose({"a": [one]}))
    assert finding.task == "watch" and "mrr on test data falls from 0.2 to 0.1 (50% of the best)" in finding.text


def test_a_loss_that_does_not_fall_is_no_overfitting() -> None:
    one = run("a", (1.0, 1.0), "shared", (0.1,) * 4, (1.2, 0.8, 0.9, 2.0))
    for record in one.history:
        record["train"] = {"watch": 1.0, "rating": 1.0 + record["epoch"], "joint": 2.0}
    assert diagnose({"a": [one]}) == []


def test_a_seesaw_against_the_baselines() -> None:
    runs = [run("up", (0.99, 0.01), "shared", (0.05, 0.2, 0.2, 0.2), (1.4,) * 4, s) for s in SEEDS]
    (finding,) = of("seesaw", diagnose({"up": runs}, [transfer(runs, baselines())]))
    assert finding.settings == ("up",)
    assert finding.text.startswith("'up' trades one task for another: 'watch' positive transfer (gains +0.06")
    assert "'rating' negative transfer (gains -0.5" in finding.text and "95 % interval" in finding.text


def test_a_seesaw_at_the_kept_epochs_alone_is_early_stopping() -> None:
    # at its best epoch (11) the rating is level with its single-task model; at the kept one (200) it is far behind
    curves = (0.05, 0.2, 0.2, 0.2), (1.2, 0.853, 1.0, 5.0)
    runs = [run("late", (0.99, 0.01), "shared", *curves, s) for s in SEEDS]
    whole = diagnose({"late": runs}, [transfer(runs, baselines())])
    assert not of("seesaw", whole)
    setting, task = of("early stopping", whole)
    assert (setting.task, task.task) == (None, "rating")
    assert setting.text.startswith("'late' trades one task for another at the kept epochs ('watch' positive transfer (")
    assert "but not at each task's own best epoch: this seesaw is when training stopped" in setting.text


def test_a_seesaw_between_two_settings() -> None:
    first = [run("a", (0.5, 0.5), "shared", (0.1,) * 4, (0.8,) * 4, s) for s in SEEDS]
    second = [run("b", (0.9, 0.1), "shared", (0.2,) * 4, (1.0,) * 4, s) for s in SEEDS]
    for number, one in enumerate(second):  # equal differences would have an interval of no width
        one.history[0]["test"]["watch"]["mrr"] += number / 1000
        one.history[0]["test"]["rating"]["mse"] -= number / 1000
    (finding,) = of("seesaw", diagnose({"a": first, "b": second}))
    assert finding.settings == ("a", "b")
    assert finding.text.startswith("Seesaw between 'a' and 'b': from the first to the second 'watch' gains +0.1")
    assert "'rating' gains -0.1" in finding.text


def test_harm_by_the_moment_of_stopping_is_told_apart() -> None:
    runs = [replace(r, kept=1, design={**r.design, "share": "shared"}) for r in reference()["separate .5/.5"]]
    single = [replace(r, kept=15) for r in baselines()]
    findings = of("early stopping", diagnose({runs[0].name: runs}, [transfer(runs, single)]))
    assert {f.task for f in findings} == {"watch", "rating"}
    text = next(f.text for f in findings if f.task == "watch")
    assert "is behind its single-task model at the kept epoch" in text
    assert "this is when training stopped, not what was shared" in text


def test_every_text_is_one_sentence_or_two_on_one_line() -> None:
    for finding in found():
        assert finding.text.endswith(".") and "\n" not in finding.text and "nan" not in finding.text


def test_a_healthy_setting_has_no_finding() -> None:
    runs = [run("a", (1.0, 1.0), "shared", (0.05, 0.1, 0.12, 0.13), (1.2, 1.0, 0.9, 0.85), s) for s in SEEDS]
    assert diagnose({"a": runs}) == []


def test_settings_without_a_common_seed_are_still_diagnosed() -> None:
    settings = {
        n: [r for r in runs if r.config.seed == seed]
        for (n, runs), seed in zip(reference().items(), (0, 1, 2, 2), strict=True)
    }
    kinds = [f.kind for f in diagnose(settings)]
    assert "single-task" in kinds and "no effect" in kinds and "overfitting" in kinds


def test_idle_settings_without_a_common_seed_have_no_evidence_to_show() -> None:
    pair = {n: runs for n, runs in reference().items() if n.startswith("separate")}
    (first, one), (second, two) = pair.items()
    (idle,) = of("no effect", diagnose({first: one[:1], second: two[1:]}))
    assert idle.text == "Nothing is shared and the optimizer is Adam, so loss weights have no effect on any task."


def test_a_loss_that_hangs_on_few_rows_is_told() -> None:
    uses = {"effective": 12.0, "rows": 400, "clipped": 0.25}, {"effective": 20.0, "rows": 420, "clipped": 0.35}
    runs = [run("a", (1.0, 1.0), "shared", (0.1,) * 4, (1.0,) * 4, seed) for seed in (0, 1)]
    for one, use in zip(runs, uses, strict=True):
        one.history[-1]["propensity"] = {"rating": use}
        one.history[0]["propensity"] = {"rating": use | {"effective": 1.0}}
    (finding,) = of("few rows", diagnose({"a": runs}))
    assert (finding.settings, finding.task) == (("a",), "rating")
    assert "the 410 validation rows where its condition held weigh as 16 of equal weight do" in finding.text
    assert "30% of the weights are at their bound; raise clip" in finding.text
    for one in runs:
        one.history[-1]["propensity"]["rating"]["effective"] = 41.0  # a tenth, at the epoch that is kept
    assert of("few rows", diagnose({"a": runs})) == []


def test_a_gate_that_follows_one_expert_on_every_row_is_told_and_a_sparse_one_is_not() -> None:
    alike = {"gate": "g", "task": "rating", "mean": [0.99, 0.005, 0.005], "entropy": 0.04, "balance": 0.03, "dead": 2}
    runs = [run("a", (1.0, 1.0), "shared", (0.1,) * 4, (1.0,) * 4, seed) for seed in (0, 1)]
    for one in runs:
        one.history[-1]["gates"] = [alike, alike | {"gate": "h", "task": None, "balance": 0.9, "dead": 1}]
    (finding,) = of("collapsed gate", diagnose({"a": runs}))
    assert (finding.settings, finding.task) == (("a",), "rating")
    assert "the gate g of task 'rating' has collapsed: 2 of 3 experts get less than 1 %" in finding.text
    for one in runs:  # one expert a row, but another on every row
        one.history[-1]["gates"] = [alike | {"entropy": 0.0, "balance": 1.0, "dead": 0}]
    assert of("collapsed gate", diagnose({"a": runs})) == []


def three(name: str, weights: tuple[float, float, float], share: str = "shared") -> Run:
    schema = replace(SCHEMA, tasks=(*SCHEMA.tasks, Task("click", "binary", label="clicked")))
    values = {"watch": {"mrr": 0.1}, "rating": {"mse": 1.0}, "click": {"auc": 0.6}}
    names = [t for t, w in zip(values, weights, strict=True) if w]
    record = {"epoch": 1, "train": dict.fromkeys([*names, "joint"], 1.0), "test": {t: values[t] for t in names}}
    plain = run(name, (1.0, 1.0), share, (0.1,) * 4, (1.0,) * 4)
    return replace(plain, schema=schema, weights=dict(zip(values, weights, strict=True)), history=[record], kept=1)


@pytest.mark.parametrize("share", ["shared", "separate"])
def test_settings_that_train_different_tasks_are_still_diagnosed(share: str) -> None:
    settings = {"all": [three("all", (1.0, 1.0, 1.0), share)], "two": [three("two", (0.5, 1.0, 0.0), share)]}
    assert [f.kind for f in diagnose(settings)] == ([] if share == "shared" else ["single-task", "no effect"])


@pytest.mark.parametrize(
    ("share", "config", "idle"),
    [
        ("separate", {}, True),
        ("separate", {"weight_decay": 0.1}, True),  # decoupled: it does not see the weights
        ("separate", {"schedule": "cosine"}, True),
        ("separate", {"optimizer": "sgd"}, False),
        ("separate", {"clip": 1.0}, False),
        ("shared", {}, False),
    ],
)
def test_weights_have_no_effect_where_nothing_is_shared_and_adam_is_not_bounded(
    share: str, config: dict[str, Any], idle: bool
) -> None:
    one = run("a", (0.5, 0.5), share, (0.1,) * 4, (1.0,) * 4, **config)
    assert no_effect(one) is idle
    kinds = [f.kind for f in diagnose({"a": [one]})]
    assert ("no effect" in kinds) is idle and ("single-task" in kinds) is (share == "separate")
