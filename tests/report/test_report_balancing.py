"""Sweeps, balancing methods, trade-offs, probes, gates and calibration in a report: what was put in is found."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from made_up import exercise
from made_up_balancing import ALONE, EPOCHS, METHODS, SWEPT, balancing

from polytask.diagnose import Finding
from polytask.report import Document, document, report
from polytask.report.charts import charts
from polytask.report.html import html
from polytask.report.markdown import markdown
from polytask.report.tables import cost_table
from polytask.report.trade_tables import calibration_tables, probe_tables, seesaw_table, tradeoff_tables
from polytask.run import Run


def said(runs: list[Run]) -> Document:
    return document(runs, title="t")


@pytest.fixture(scope="module")
def found() -> Document:
    return said(balancing())


@pytest.fixture(scope="module")
def many() -> Document:
    return said([r for body in ("mmoe", "ple") for r in balancing(body, tasks=4, seeds=(0, 1, 2))])


def test_of_a_sweep_only_what_validation_data_choose_is_judged(found: Document) -> None:
    names = ["mmoe static", *(f"mmoe {m}" for m in METHODS)]
    assert list(dict.fromkeys(v.setting for v in found.verdicts)) == names
    assert [s.name for s in found.settings if s.kind == "joint"] == names
    (sweep,) = found.sweeps
    assert (sweep.chosen, len(sweep.points)) == ("mmoe static 0.5/0.5", len(SWEPT))
    assert "'mmoe static' stands for static weights 0.5/0.5, chosen of 3 on validation data." in found.verdict_note
    tested = [v.own for v in found.verdicts if v.own.p is not None]
    smallest = min(tested, key=lambda g: g.p or 1)
    assert smallest.p and smallest.adjusted == pytest.approx(len(names) * 2 * smallest.p)  # the family is what is shown


def test_test_data_choose_nothing() -> None:
    runs = balancing(methods={})
    for run in runs:
        for record in run.history if run.name.endswith("0.25/0.75") else ():
            record["test"] = {t: {"auc": 0.99, "logloss": 0.1} for t in run.tasks}
    assert said(runs).sweeps[0].chosen == "mmoe static 0.5/0.5"


def test_without_validation_data_every_point_is_shown() -> None:
    runs = [replace(r, history=[{k: v for k, v in h.items() if k != "valid"} for h in r.history]) for r in balancing()]
    whole = said(runs)
    assert whole.sweeps == () and {f"mmoe static {w}" for w in SWEPT} <= {s.name for s in whole.settings}


def test_a_method_is_judged_against_the_tuned_weights_of_its_network(found: Document) -> None:
    outcomes = {m.setting: m.outcome for m in found.matches}
    assert outcomes == {"mmoe mgda": "better", "mmoe rlw": "worse", "mmoe uncertainty": "equivalent"}
    best = found.matches[0]
    assert (best.static, best.tried) == ("mmoe static", 3)
    # auc alone, +.02 of about .69, counts as one half of the task's metrics, its logloss stays
    assert best.overall.mean == pytest.approx(100 * METHODS["mgda"] / ALONE / 2, abs=0.2)
    assert [m.adjusted for m in found.matches] == sorted(m.adjusted or 1 for m in found.matches)
    assert found.balancing.startswith("1 of 3 balancing methods beats tuned static weights (0.5/0.5, chosen of 3")
    assert "'mmoe mgda' (+1." in found.balancing and found.balancing in found.headline


def test_that_no_method_helps_is_said_plainly() -> None:
    text = said(balancing(methods={"rlw": -0.02, "uncertainty": 0.0})).balancing
    assert text.startswith("None of 2 balancing methods beats tuned static weights") and "nearest is 'mmoe unc" in text
    one = said(balancing(methods={"rlw": -0.02})).balancing
    assert one.startswith("The one balancing method does not beat tuned static weights")
    assert said(balancing(methods={})).balancing == "" and said(exercise()).balancing == ""


def test_one_pair_of_seeds_and_untuned_weights_are_named_as_such() -> None:
    assert said(balancing(seeds=(0,))).balancing.startswith("With one pair of seeds it cannot be said")
    untuned = [r for r in balancing() if not r.sweep or r.name.endswith("0.5/0.5")]
    assert "static weights, which were not tuned, of 'mmoe static 0.5/0.5'" in said(untuned).balancing


def test_the_choice_of_validation_data_is_told_task_by_task(found: Document) -> None:
    (text,) = [s for s in found.headline if "validation data choose" in s]
    assert "choose 'mmoe mgda'; against training alone: 't0' +2." in text and text.count(", gains") == 2


def test_the_headline_stays_short_for_many_tasks_and_settings(many: Document) -> None:
    assert len(many.verdicts) == 2 * 4 * 4
    assert 1 < len(many.headline) <= 4 and all(len(s) < 500 for s in many.headline)
    assert sum(map(len, many.headline)) < 1500


def test_the_trade_off_holds_all_points_and_marks_the_front(found: Document) -> None:
    trade = found.tradeoff
    assert trade is not None
    points = {p.setting: p for p in trade.points}
    assert {f"mmoe static {w}" for w in SWEPT} < set(points) and points["mmoe static 0.5/0.5"].chosen
    assert {n for n, p in points.items() if p.front} == {"mmoe static 0.75/0.25", "mmoe mgda"}
    assert points["single-task models"].kind == "single-task"
    kept = [r.history[r.kept - 1]["test"]["t0"]["auc"] for r in balancing() if r.name == "mmoe mgda"]
    assert points["mmoe mgda"].values[0] == pytest.approx(math.fsum(kept) / len(kept))
    table = tradeoff_tables(found)[0]
    assert [r[-1] for r in table.rows if r[0] == "mmoe mgda"] == ["front"]


def test_settings_that_share_nothing_are_single_task_models_in_the_trade_off() -> None:
    for baselines, alone in ((True, {"single-task models"}), (False, {"separate .5/.5", "separate .99/.01"})):
        trade = said(exercise(baselines=baselines)).tradeoff
        assert trade is not None and {p.setting for p in trade.points if p.kind == "single-task"} == alone
        assert {p.setting for p in trade.points if p.kind == "static"} == {"shared .5/.5", "shared .99/.01"}


def test_the_hypervolume_is_a_share_of_the_stated_box(found: Document) -> None:
    trade = found.tradeoff
    assert trade is not None
    covers = {c.method: c for c in trade.covers}
    assert set(covers) == {"mmoe static", *(f"mmoe {m}" for m in METHODS)}
    (mgda,) = [p for p in trade.points if p.setting == "mmoe mgda"]
    sides = [(v - w) / (b - w) for v, w, b in zip(mgda.values, trade.worst, trade.best, strict=True)]
    assert covers["mmoe mgda"].share == pytest.approx(math.prod(sides))
    assert covers["mmoe static"].settings == ("mmoe static 0.5/0.5", "mmoe static 0.75/0.25")
    assert all(0 <= c.share <= 1 for c in trade.covers)


def test_the_heat_map_shows_conflict_where_and_when_it_is(found: Document) -> None:
    rows = {t.group: t for t in found.probes.traces if t.setting == "mmoe mgda"}
    assert set(rows) == {"tables.0", "trunks.0.body", "total"}
    assert rows["tables.0"].relations == ("aligned", "aligned", "conflict", "conflict")
    assert rows["tables.0"].cosine == pytest.approx((0.4, 0.4, -0.4, -0.4))
    assert set(rows["trunks.0.body"].relations) == {"noise"}
    drawn = json.loads(charts(found)["conflicts"])["data"]
    assert len(drawn) == 4 and drawn[0]["text"][0][-1] == "▼" and drawn[0]["text"][1] == ["·"] * EPOCHS


def test_long_trainings_fit_the_heat_map() -> None:
    runs = balancing(methods={}, seeds=(0, 1))
    for run in runs:
        run.history = [h | {"epoch": e} for e, h in enumerate(run.history * 15, start=1)]
    trace = said(runs).probes.traces[0]
    assert len(trace.cosine) == 20 and trace.epochs[0] == 3 and trace.epochs[-1] == 15 * EPOCHS


def test_of_many_pairs_the_worst_come_first(many: Document) -> None:
    own = [r for r in many.probes.relations if r.setting == "ple static"]
    assert len(own) == 6 and len(probe_tables(many)[0].rows) == 3 * 8
    assert len({t.tasks for t in many.probes.traces if t.setting == "ple static"}) == 3


def test_shares_are_those_of_weights_losses_gradients_and_steps(found: Document) -> None:
    shares = {(s.setting, s.task, s.kind): s.values for s in found.shares}
    assert shares["mmoe mgda", "t0", "weights"] == (0.75,) * EPOCHS
    assert ("mmoe static", "t0", "weights") not in shares  # they stand still
    assert shares["mmoe static", "t0", "loss"] == (0.5,) * EPOCHS
    assert shares["mmoe static", "t0", "gradients"] == pytest.approx((2 / 3,) * EPOCHS, abs=1e-4)


def test_a_grouping_of_tasks_is_suggested_from_the_lookahead(found: Document, many: Document) -> None:
    text = many.probes.grouping
    assert "in 'mmoe static' (lookahead affinity" in text and "3 of 3 seeds alone would say the same" in text
    groups = [set(re.findall("'(t.)'", g)) for g in text.partition("models: ")[2].partition("; 3 of")[0].split("; ")]
    assert not any({"t0", "t1"} <= group for group in groups)  # each other's step hurts them
    assert found.probes.grouping == ""  # of two tasks the verdicts say more


def test_gates_are_those_of_one_seed_at_the_kept_epoch(found: Document) -> None:
    gate = found.gates[0]
    assert (gate.setting, gate.seed, gate.task, gate.dead) == ("mmoe static", 0, "t0", 1)
    assert gate.shares == pytest.approx((0.1 * (EPOCHS - 1), 1 - 0.1 * (EPOCHS - 1), 0))
    assert "gates" in charts(found) and "gates" not in charts(said(balancing("ple", seeds=(0, 1))))


def test_calibration_is_shown_before_and_after(found: Document) -> None:
    rows = {(c.setting, c.task, c.metric): c for c in found.calibrations}
    changed = rows["mmoe mgda", "t0", "auc"]
    assert changed.kind == "platt" and changed.after - changed.before == pytest.approx(0, abs=1e-9)
    assert (rows["mmoe mgda", "t0", "logloss"].before, rows["mmoe mgda", "t0", "logloss"].after) == (0.5, 0.4)
    assert ("mmoe mgda", "t1", "auc") not in rows and calibration_tables(said(exercise())) == []


def test_steps_and_memory_are_relative_to_static_weights_of_the_same_network(found: Document) -> None:
    costs = {s.name: s for s in found.settings}
    mgda = costs["mmoe mgda"]
    assert mgda.beside == "mmoe static" and mgda.times_step == pytest.approx(1.5)
    assert mgda.times_memory == pytest.approx(1.1) and costs["mmoe static"].times_step == 1
    (row,) = [r for r in cost_table(found).rows if r[0] == "mmoe mgda"]
    assert row[-5:] == ("3", "1.50", "220", "1.10", "mmoe static")
    unknown = [r for r in cost_table(said(exercise())).rows if r[0] == "shared .5/.5"]
    assert unknown[0][-5:] == ("–",) * 5


def test_the_seesaw_shows_every_verdict_by_color_and_symbol(found: Document) -> None:
    figure = json.loads(charts(found)["seesaw"])
    marks = {t["name"]: t["marker"] for t in figure["data"] if t["name"] != "at the kept epoch"}
    assert (marks["gains"]["symbol"], marks["pays"]["symbol"]) == ("triangle-up", "triangle-down")
    assert len({m["color"] for m in marks.values()}) == len(marks)
    gains = next(t for t in figure["data"] if t["name"] == "gains")
    assert 2 < gains["x"][0] < 4 and gains["error_x"]["array"][0] > 0
    labels = figure["layout"]["yaxis"]["ticktext"]
    assert labels[gains["y"][0]] == "mmoe mgda"
    (table,) = seesaw_table(found)
    (row,) = [r for r in table.rows if r[0] == "mmoe mgda"]
    assert row[1].startswith("▲ +2.") and row[1].endswith("%)")


def test_pictures_are_only_of_what_exists() -> None:
    plain = charts(said(exercise(seeds=(0, 1))))
    assert {n for n in plain if not n.startswith("comparison")} == {"seesaw", "tradeoff"}
    alone = charts(said([r for r in exercise(seeds=(0,)) if r.name == "shared .5/.5"]))
    assert set(alone) == {"comparison-0"}


@pytest.mark.parametrize("tasks", [2, 4])
def test_page_and_markdown_hold_all_parts_once(tasks: int) -> None:
    whole = said(balancing(tasks=tasks, seeds=(0, 1)))
    page, text = html(whole), markdown(whole)
    blocks = re.findall('id="figure-([a-z0-9-]+)"', page)
    assert blocks == re.findall('data-figure="figure-([a-z0-9-]+)"', page) and len(set(blocks)) == len(blocks)
    assert set(blocks) == set(charts(whole)) and "<!-- part" not in page
    for title in ("Balancing and trade-offs", "Conflict between tasks", "Calibration, fitted", "Hypervolume: "):
        assert text.count(title) == 1


def test_a_remedy_is_a_command_to_copy() -> None:
    command = "polytask compare x.toml --balance `a` <b>"
    whole = said(balancing(seeds=(0, 1)))
    told = replace(whole, findings=tuple(Finding("seesaw", ("a",), None, f"It is so {n}.", command) for n in (1, 2)))
    page = html(told)
    assert page.count('<code class="command">') == 1  # the same for both, so it stands once
    assert "--balance `a` &lt;b&gt;</code>" in page
    assert "  ```\n  polytask compare x.toml --balance `a` <b>\n  ```" in markdown(told)


def test_the_json_is_strict_and_whole(tmp_path: Path) -> None:
    report(balancing(seeds=(0, 1)), tmp_path)

    def refuse(value: str) -> None:
        raise AssertionError(value)

    value = json.loads((tmp_path / "report.json").read_text("utf-8"), parse_constant=refuse)
    assert value["matches"][0]["outcome"] and value["tradeoff"]["points"] and value["probes"]["lookaheads"]
    assert value["sweeps"][0]["chosen"] == "mmoe static 0.5/0.5" and value["gates"] and value["calibrations"]
