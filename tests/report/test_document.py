"""The document says what was put into made-up runs, and its JSON and Markdown hold it whole."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_up import EPOCHS, SEEDS, exercise

from polytask.errors import ConfigError, visible
from polytask.predictions import TEST_FILE, Predictions
from polytask.report import Document, document, report
from polytask.report.markdown import markdown, plain
from polytask.report.tables import change_table, verdict_table
from polytask.report.wording import number, percent
from polytask.run import Run

HOSTILE = ('</script><img src=x onerror="alert(1)">', '"><b>|\n# x', "\u2028\x1b[31m![i](x)", "<!-- part: plotly -->")


def said(runs: list[Run]) -> Document:
    return document(runs, title="t")


@pytest.fixture(scope="module")
def found() -> Document:
    return said(exercise())


def verdicts(found: Document, moment: str = "own") -> dict[tuple[str, str], str]:
    return {(v.setting, v.task): getattr(v, moment).verdict for v in found.verdicts}


def test_sharing_harms_the_ranking_and_not_the_rating(found: Document) -> None:
    got = verdicts(found)
    assert got["shared .5/.5", "watch"] == "negative transfer"
    assert got["shared .5/.5", "rating"] == "inconclusive"
    assert got["separate .5/.5", "watch"] == got["separate .99/.01", "rating"] == "nothing shared"
    (row,) = [v for v in found.verdicts if (v.setting, v.task) == ("shared .5/.5", "watch")]
    assert row.baseline == "watch alone" and len(row.own.gains) == len(SEEDS)
    assert row.own_relative == pytest.approx(-0.56, abs=0.02)


def test_an_interval_that_leaves_out_0_is_not_enough_where_several_were_tried(found: Document) -> None:
    (row,) = [v for v in found.verdicts if (v.setting, v.task) == ("shared .99/.01", "watch")]
    assert row.own.p and row.own.adjusted and row.own.high
    assert row.own.high < 0 and row.own.p < 0.05 < row.own.adjusted and row.own.verdict == "inconclusive"
    assert row.own.needed and row.own.needed > len(SEEDS)
    table = verdict_table(found)
    (cells,) = [r for r in table.rows if r[:2] == ("shared .99/.01", "watch")]
    assert cells[table.columns.index("p (Holm)")] == f"{row.own.adjusted:.3f}"
    assert cells[table.columns.index("Seeds needed")] == str(row.own.needed)


def test_all_tasks_of_a_setting_are_one_number_with_its_sign_explained(found: Document) -> None:
    changes = {c.setting: c for c in found.changes}
    assert set(changes) == {s.name for s in found.settings[:4]}
    worst = changes["shared .5/.5"]
    assert worst.tasks == ("watch", "rating") and worst.own and worst.own.low and worst.own.high
    assert worst.own.low < worst.own.mean < worst.own.high < -20  # half of the ranking's -55 %
    same = changes["separate .5/.5"].own
    assert same and abs(same.mean) < 1
    assert "positive means that joint training is better" in change_table(found).caption
    assert "Many papers print the drop" in " ".join(found.notes)


def with_predictions(runs: list[Run], folder: Path) -> list[Run]:
    """The runs with test predictions in their folders: the joint models are off by 1.5, the others by 1."""
    users = torch.arange(1, 41)
    for place, run in enumerate(runs):
        off = (1.5 if run.alone is None else 1.0) + 0.1 * torch.sin(users.double()).float()
        ranks = 5 + users.double() / 2
        told = Predictions(
            run.schema, users, {"rating": off}, {"rating": torch.zeros(40)}, ranks={"watch": (ranks, users)}
        )
        run.folder = folder / str(place)
        told.save(run.folder / TEST_FILE)
    return runs


def test_the_chance_of_the_test_users_is_told_apart_from_that_of_the_seeds(tmp_path: Path, found: Document) -> None:
    assert found.resampled == ()
    whole = said(with_predictions(exercise(), tmp_path))
    rows = {(r.setting, r.task): r for r in whole.resampled}
    assert set(rows) == {(s, t) for s in ("shared .5/.5", "shared .99/.01") for t in ("watch", "rating")}
    rating = rows["shared .5/.5", "rating"]
    assert (rating.metric, rating.seed, rating.baseline) == ("mse", 0, "rating alone")
    assert rating.gain.low and rating.gain.high and rating.gain.low < rating.gain.mean < rating.gain.high < -1
    assert rows["shared .5/.5", "watch"].gain.mean == 0
    assert "The chance of the test users alone" in markdown(whole)
    assert "| shared .5/.5 | rating | mse | 0 | −1.2" in markdown(whole)


def test_the_notes_state_rule_correction_and_margin(found: Document) -> None:
    text = " ".join(found.notes)
    assert (
        "within 1 % of the single-task value" in text and "Holm's correction" in text and "intervals are plain" in text
    )
    assert "within 3 % of" in " ".join(document(exercise(), title="t", margin=0.03).notes)


def test_the_headline_has_the_outcome_first(found: Document) -> None:
    paid, unharmed, overfits, single = found.headline
    assert paid.startswith("Sharing harms 'watch' in 'shared .5/.5' (−5")
    assert "95 % interval −5" in paid and "mrr 0.06" in paid and "'shared .99/.01'" not in paid
    assert unharmed.startswith("'rating' ") and unharmed.endswith("not harmed by any setting beyond noise.")
    assert overfits.startswith("'rating' overfits in 3 settings (most: mse +") and "'shared .99/.01'" not in overfits
    assert single.startswith("'separate .5/.5' and 'separate .99/.01' share nothing") and "no effect" in single


def test_findings_name_single_task_models_idle_weights_and_overfitting(found: Document) -> None:
    kinds = {f.kind for f in found.findings}
    assert {"single-task", "no effect", "overfitting"} <= kinds
    (text,) = [f.text for f in found.findings if f.kind == "overfitting" and f.settings == ("separate .5/.5",)]
    assert "'rating'" in text and "after epoch 10" in text


def test_the_five_comparisons_of_the_write_up(found: Document) -> None:
    four = tuple(s.name for s in found.settings[:4])
    assert [(c.title, c.settings) for c in found.comparisons] == [
        ("All joint settings", four),
        ("Shared settings with different weights", four[:2]),
        ("Separate settings with different weights", four[2:]),
        ("Shared against separate at weights watch 0.5, rating 0.5", (four[0], four[2])),
        ("Shared against separate at weights watch 0.99, rating 0.01", (four[1], four[3])),
    ]
    watch, rating, overfits, *_ = found.comparisons[3].text
    assert "'separate .5/.5' is best: 0.136" in watch and "beyond noise" in watch
    assert "within noise" in rating and "epoch 11" in rating and "at the last" in rating
    assert overfits.startswith("'rating' overfits in 'shared .5/.5' (0.8")
    assert "weights have no effect" in found.comparisons[2].text[-1]


def test_fewer_settings_give_fewer_comparisons() -> None:
    runs = exercise()
    titles = [c.title for c in said([r for r in runs if r.name.startswith("shared")]).comparisons]
    assert titles == ["Shared settings with different weights"]
    assert [c.title for c in said([r for r in runs if r.name == "rating alone"]).comparisons] == ["All settings"]


def test_a_setting_that_shares_nothing_stands_in_for_single_task_runs() -> None:
    found = said(exercise(baselines=False))
    assert {v.baseline for v in found.verdicts} == {"separate .5/.5"}
    assert {v.setting for v in found.verdicts} == {"shared .5/.5", "shared .99/.01"}
    assert verdicts(found)["shared .5/.5", "watch"] == "negative transfer"
    assert "exactly single-task models side by side" in found.verdict_note


def test_without_any_baseline_the_report_says_so() -> None:
    found = said([r for r in exercise() if r.name.startswith("shared")])
    assert found.verdicts == () and "cannot be said who gained" in found.verdict_note
    assert "cannot be said" in found.headline[0]


def test_one_seed_claims_nothing() -> None:
    found = said(exercise(seeds=(0,)))
    assert set(verdicts(found).values()) == {"inconclusive", "nothing shared"}
    assert found.headline[0].startswith("With one pair of seeds") and "−5" in found.headline[0]
    assert "noise is unknown" in found.comparisons[0].text[0]


def test_a_large_loss_within_noise_is_not_called_harmless() -> None:
    runs = [r for r in exercise() if r.name == "shared .5/.5" or r.alone]
    for run in runs:
        for record in run.history if run.alone is None else ():
            record["test"]["rating"]["mse"] += 0.6 * run.config.seed  # 0, .6, 1.2: the interval holds 0
    said_first = said(runs).headline[1]
    assert said_first.startswith(
        "3 seeds are too few for 2 verdicts to say whether sharing helps or harms 'rating' (−7"
    )


def test_a_baseline_without_a_common_seed_is_none() -> None:
    runs = [r for r in exercise() if r.name == "shared .5/.5"]
    runs += [replace(r, config=replace(r.config, seed=9)) for r in exercise((0,)) if r.alone]
    assert said(runs).verdicts == ()


def test_the_nearest_network_is_the_baseline() -> None:
    wide = [replace(r, name=f"{r.name} wide", design=r.design | {"dim": 64}) for r in exercise() if r.alone != "rating"]
    found = said([*exercise(), *wide])
    assert {(v.setting.endswith("wide"), v.baseline) for v in found.verdicts if v.task == "watch"} == {
        (False, "watch alone"),
        (True, "watch alone wide"),
    }


def test_curves_hold_mean_and_band_over_the_seeds(found: Document) -> None:
    keyed = {(c.setting, c.part, c.task, c.metric): c for c in found.curves}
    curve = keyed["shared .5/.5", "test", "watch", "mrr"]
    runs = [r for r in exercise() if r.name == "shared .5/.5"]
    values = [r.history[9]["test"]["watch"]["mrr"] for r in runs]
    assert curve.epochs == tuple(range(1, EPOCHS + 1))
    assert curve.mean[9] == pytest.approx(sum(values) / 3, rel=1e-5)
    assert (curve.low[9], curve.high[9]) == pytest.approx((min(values), max(values)), rel=1e-5)
    assert ("shared .5/.5", "train", "joint", "loss") in keyed
    assert ("shared .5/.5", "test", "watch", "hit@10") not in keyed  # absent in every run


def test_runs_that_stopped_early_end_their_own_curves() -> None:
    runs = [r for r in exercise((0, 1)) if r.name == "shared .5/.5"]
    runs[1] = replace(runs[1], history=runs[1].history[:20], kept=12)
    found = said(runs)
    curve = next(c for c in found.curves if c.part == "test")
    assert len(curve.epochs) == EPOCHS and curve.low[30] == curve.high[30]
    assert found.settings[0].trained == (EPOCHS, 20) and found.settings[0].kept == (EPOCHS, 12)


def test_costs_are_relative_to_the_cheapest(found: Document) -> None:
    costs = {s.name: (s.times_parameters, s.times_seconds) for s in found.settings}
    assert costs["shared .5/.5"] == (1, 1)
    assert costs["separate .5/.5"] == pytest.approx((176 / 90, 61 / 41))


def test_notes_say_where_epochs_were_chosen(found: Document) -> None:
    text = " ".join(found.notes)
    assert "optimistic, for all settings alike" in text and "full catalogue" in text and "torch 2.13.0" in text
    chosen = " ".join(said(exercise(valid=True)).notes)
    assert "best epochs were chosen on validation data" in chosen and "optimistic" not in chosen


def test_nothing_to_report_on_is_an_error_of_one_line() -> None:
    with pytest.raises(ConfigError, match="no runs to report on"):
        said([])
    with pytest.raises(ConfigError, match="scored on no"):
        said([replace(exercise((0,))[0], history=[{"epoch": 1, "train": {"watch": 1.0}}])])


def test_json_is_strict_and_whole(tmp_path: Path) -> None:
    page = report(exercise(names=(*HOSTILE[:3], "d"), tasks=("a|b", "<i>")), tmp_path, title=HOSTILE[0])

    def refuse(value: str) -> None:
        raise AssertionError(value)

    value = json.loads((tmp_path / "report.json").read_text("utf-8"), parse_constant=refuse)
    assert page == tmp_path / "report.html" and {p.name for p in tmp_path.iterdir()} == {
        "report.html",
        "report.md",
        "report.json",
    }
    assert value["title"] == HOSTILE[0]
    assert [s["name"] for s in value["settings"][:3]] == list(HOSTILE[:3])
    assert value["verdicts"][0]["own"]["verdict"] == "negative transfer"


@pytest.mark.parametrize("names", [("a", "b", "c", "d"), HOSTILE])
def test_markdown_tables_are_well_formed(names: tuple[str, str, str, str]) -> None:
    text = markdown(said(exercise(names=names, tasks=("w|\\", "r\nr"))))
    tables = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    assert len(tables) == 8
    for table in tables:
        head, rule, *rows = (re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1] for line in table.splitlines())
        assert {c.strip() for c in rule} == {"---"}
        assert rows and {len(r) for r in [rule, *rows]} == {len(head)}
    assert "<" not in text and "\x1b" not in text and "\u2028" not in text
    assert not re.search(r"(?<!\\)!?\[", text)
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1


def test_how_text_and_numbers_are_written() -> None:
    assert visible("a\n\x1b[0m\u2028\u202eé") == "a\\n\\x1b[0m\\u2028\\u202eé"
    assert plain("<b>|*a_`\\") == "&lt;b&gt;\\|\\*a\\_\\`\\\\"
    assert [number(v) for v in (0.0593, 0.85, 12.5, 1234567.0, 0.0, None)] == [
        "0.05930",
        "0.8500",
        "12.50",
        "1,234,567",
        "0.0",
        "–",
    ]
    assert number(-0.00754, 0.1346, "+") == "−0.0075" and number(-1e-9, 0.5, "+") == "+0.0000"
    assert number(3.5e-12) == "3.5e−12"
    assert [percent(v) for v in (-0.56, 0.0262, 0.0)] == ["−56%", "+2.6%", "+0.0%"]
