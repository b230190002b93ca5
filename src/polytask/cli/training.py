"""Commands from data to a verdict: read, train, compare, tune, report, diagnose."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polytask.cli.app import Folder, Force, Handout, Json, Set, Source, Workers, app
from polytask.errors import visible

if TYPE_CHECKING:
    from polytask.config import Config
    from polytask.data.split import Split
    from polytask.data.table import Dataset
    from polytask.run import Run


@app.command()
def data(name: Annotated[str, typer.Argument(help="A data set to fetch and describe; none lists them.")] = "") -> None:
    """List the built-in data sets, or fetch one and say what is in it."""
    from polytask.console import out
    from polytask.data.check import check
    from polytask.data.datasets import DATASETS, load

    for line in check(load(name)).lines() if name else sorted(DATASETS):
        out.print(visible(line), markup=False)


@app.command()
def check(
    source: Annotated[str, typer.Argument(help="A TOML file, a built-in experiment or data set, or a table to check.")],
    user: Annotated[str, typer.Option(help="For a table: its user column.")] = "user_id",
    item: Annotated[str, typer.Option(help="For a table: its item column.")] = "item_id",
    time: Annotated[str | None, typer.Option(help="For a table: its time column, in seconds.")] = None,
    label: Annotated[list[str], typer.Option(help="For a table: a label column. Repeatable.")] = [],
    as_json: Json = False,
) -> None:
    """Read data against its schema and say what is in it and what will hurt."""
    from polytask.console import out
    from polytask.data.check import check as examine

    findings = examine(_any_data(source, user, item, time, label))
    if as_json:
        print(json.dumps(findings.to_dict(), allow_nan=False))
    else:
        for line in findings.lines():
            out.print(visible(line), markup=False)


@app.command()
def train(
    source: Source, overrides: Set = [], folder: Folder = None, force: Force = False, as_json: Json = False
) -> None:
    """Train one model as the configuration says; the same command goes on after a kill."""
    from polytask.console import err, out, progress
    from polytask.diagnose import diagnose, no_effect
    from polytask.nn.models import make_model
    from polytask.record import Recorder
    from polytask.train import fit_many

    config, base = _configured(source, overrides)
    parts, where = _parts(config, base), folder or _home(config.name)
    model = make_model(parts.train, config.design())
    with progress("training") as tell:
        kept = config.moved(base, where).toml()
        recorder = Recorder.of(where, name=config.name, progress=lambda d, t: tell("", d, t), force=force, config=kept)
        run = fit_many([model], parts.train, parts.valid, parts.test, config=config.train_config(), recorder=recorder)[
            0
        ]
    if run.alone is None and no_effect(run):
        err.print("warning: nothing is shared and the optimizer is Adam, so loss weights have no effect on any task")
    for finding in diagnose({config.name: [run]}):
        if finding.kind in ("collapsed gate", "few rows"):
            err.print(visible(f"warning: {finding.text}"), markup=False)
    if as_json:
        print(json.dumps(_last(run), allow_nan=False))
    else:
        _show_run(run)
        for line in run.chosen:
            out.print(visible(line), markup=False)
        out.print(visible(f"run: {where}"), markup=False)


def _parts(config: "Config", base: Path) -> "Split":
    """The parts to train on, streamed where the configuration says so."""
    from polytask.data.features import inferred
    from polytask.data.parquet import Parquet
    from polytask.data.source import open_table
    from polytask.data.split import split
    from polytask.data.stream import BLOCK, stream

    d = config.data
    if not d.stream:
        return split(config.load_data(base), **d.split.model_dump())
    path = base / d.interactions
    named = (("users", d.users), ("items", d.items))
    users, items = (None if p is None else open_table(base / p, role).frame for role, p in named)
    schema = config.schema_for(found=inferred(config.short(d.user, d.item), Parquet.of(path).head(BLOCK), users, items))
    return stream(path, schema, users=users, items=items).split(**d.split.model_dump())


@app.command()
def compare(
    source: Source,
    overrides: Set = [],
    body: Annotated[str, typer.Option(metavar="A,B", help="Settings or bodies to compare, in place of all.")] = "",
    balance: Annotated[str, typer.Option(metavar="A,B", help="Balancing methods, each with every setting.")] = "",
    seeds: Annotated[int, typer.Option(min=0, help="Number of paired seeds; 0 leaves those of the file.")] = 0,
    handout: Handout = False,
    folder: Folder = None,
    workers: Workers = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train every setting and the single-task baselines over the seeds, and write the report."""
    config, base = _configured(source, overrides, handout)
    if seeds:
        config = config.with_overrides({"compare.seeds": list(range(seeds))})
    if body or balance:
        config = config.crossed(*([n.strip() for n in names.split(",") if n.strip()] for names in (body, balance)))
    name = f"{config.name}-handout" if handout else f"{config.name}-compare"
    where = folder or _home(name)
    _compare(config.moved(base, where), config.load_data(base), where, workers, force, as_json)


@app.command()
def tune(
    source: Source,
    overrides: Set = [],
    trials: Annotated[int | None, typer.Option(min=1, help="Joint trainings, in place of tune.trials.")] = None,
    folder: Folder = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Search settings on validation data, then compare the best with single-task models that were searched alike."""
    import torch

    from polytask.console import out, progress
    from polytask.report import report as write
    from polytask.tune import tune as search

    torch.set_num_threads(1)
    config, base = _configured(source, overrides + ([f"tune.trials={trials}"] if trials else []))
    dataset, where = config.load_data(base), folder or _home(f"{config.name}-tune")
    wanted, kept = config.search(dataset.schema.task_names), config.moved(base, where).toml()
    with progress("tuning") as tell:
        found = search(dataset, wanted, where, workers=workers, progress=tell, config=kept)
    page = write(found.runs, where, title=f"{config.name} on {dataset.name}, tuned", margin=config.compare.margin)
    if as_json:
        report = json.loads((where / "report.json").read_text("utf-8"))
        print(json.dumps({"tune": found.to_dict(), "report": report}, allow_nan=False))
    else:
        _show_tuning(found.to_dict())
        _show_comparison(json.loads((where / "report.json").read_text("utf-8")))
        out.print(visible(f"report: {page}"), markup=False)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold runs.")],
    folder: Annotated[Path, typer.Option(help="Where to write the report.")] = Path("report"),
    title: Annotated[str, typer.Option(help="Its title.")] = "Comparison",
    margin: Annotated[
        float | None, typer.Option(min=0, help="Share of the single-task value that counts as equivalent.")
    ] = None,
) -> None:
    """Write the report of any finished runs: HTML, Markdown and JSON."""
    from polytask.console import out
    from polytask.report import report as write
    from polytask.run import Run, run_folders

    found = [Run.load(f) for path in runs for f in run_folders(path)]
    out.print(f"report: {write(found, folder, title=title, margin=margin)}", markup=False)


@app.command()
def diagnose(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold runs.")],
    margin: Annotated[
        float | None, typer.Option(min=0, help="Share of the single-task value that counts as equivalent.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say of finished runs what the tasks are to each other, who pays for sharing and why, and what to try."""
    from dataclasses import asdict

    from polytask.console import out
    from polytask.diagnose import diagnose as examine
    from polytask.report.balancing import shown, sweeps
    from polytask.report.settings import grouped
    from polytask.run import Run, run_folders
    from polytask.transfer import transfers

    every = grouped([Run.load(f) for path in runs for f in run_folders(path)])
    settings = shown(every, sweeps(every))
    findings = examine(settings, transfers(settings, margin=margin))
    if as_json:
        print(json.dumps([asdict(f) for f in findings], allow_nan=False))
        return
    for found in findings:
        out.print(f"- {visible(found.kind)}: {visible(found.text)}", markup=False)
        if found.remedy:
            out.print(f"  try: {visible(found.remedy)}", markup=False)


@app.command("validate-diagnosis")
def validate_diagnosis(
    folder: Folder = None,
    worlds: Annotated[int, typer.Option(min=1, help="Worlds per kind.")] = 20,
    first: Annotated[int, typer.Option(min=0, help="Number of the first world.")] = 0,
    kinds: Annotated[str, typer.Option(metavar="A,B", help="Kinds of worlds, in place of all.")] = "",
    workers: Workers = None,
) -> None:
    """Judge generated worlds whose truth is planted; write how often the diagnosis is right."""
    import os

    import torch

    from polytask.console import out, progress
    from polytask.validation import report as write
    from polytask.validation import validate

    torch.set_num_threads(1)
    where, chosen = folder or _home("validate-diagnosis"), [k.strip() for k in kinds.split(",") if k.strip()]
    with progress("world") as tell:
        trials = validate(
            where,
            range(first, first + worlds),
            chosen,
            workers=workers or os.cpu_count() or 1,
            progress=lambda done, total: tell("", done, total),
        )
    out.print(write(trials, where).markdown(), markup=False)
    out.print(visible(f"report: {where / 'validation.md'}"), markup=False)


@app.command()
def demo(folder: Folder = None, workers: Workers = None) -> None:
    """Run the main job: compare cs330 on MovieLens 100K (synthetic data of the same shape where it is out of reach)."""
    from polytask.console import err
    from polytask.data.datasets.download import Offline

    config, base = _configured("cs330", [])
    where = folder or Path("runs") / "demo"
    try:
        dataset = config.load_data(base)
    except Offline as error:
        err.print(f"{error}; using the synthetic data set of the same shape instead", markup=False)
        config, where = (
            config.with_overrides({"data.interactions": "synthetic"}),
            where.with_name(f"{where.name}-synthetic"),
        )
        dataset = config.load_data(base)
    _compare(config, dataset, where, workers, force=False, as_json=False)


def _configured(source: str, overrides: list[str], handout: bool = False) -> "tuple[Config, Path]":
    from polytask.config import assignments, read

    config, base = read(source)
    if handout:
        config = config.with_variant("handout")
    return config.with_overrides(assignments(overrides)), base


def _home(name: str) -> Path:
    from polytask.files import folder_name

    return Path("runs") / folder_name(name)


def _any_data(source: str, user: str, item: str, time: str | None, labels: list[str]) -> "Dataset":
    from polytask.config import read
    from polytask.data.datasets import DATASETS, load
    from polytask.data.features import plain_schema
    from polytask.data.source import open_table
    from polytask.data.table import build

    if source in DATASETS:
        return load(source)
    if Path(source).suffix == ".toml" or not Path(source).exists():
        config, base = read(source)
        return config.load_data(base)
    raw = open_table(Path(source), "interactions")
    return build(raw, plain_schema(raw.frame, user, item, time, labels), users=None, items=None, name="")


def _compare(
    config: "Config", dataset: "Dataset", folder: Path, workers: int | None, force: bool, as_json: bool
) -> None:
    from polytask.compare import UnfinishedError
    from polytask.compare import compare as run_all
    from polytask.console import out, progress
    from polytask.report import report as write

    experiment = config.experiment(dataset.schema.task_names)
    try:
        with progress("stack") as tell:
            runs = run_all(
                dataset, experiment, folder, workers=workers, progress=tell, force=force, config=config.toml()
            )
    except UnfinishedError as error:
        if error.runs:
            page = write(error.runs, folder, title=f"{config.name} on {dataset.name}", margin=config.compare.margin)
            out.print(f"report of what is finished: {page}", markup=False)
        raise
    page = write(runs, folder, title=f"{config.name} on {dataset.name}", margin=config.compare.margin)
    if as_json:
        print((folder / "report.json").read_text("utf-8"))
    else:
        _show_comparison(json.loads((folder / "report.json").read_text("utf-8")))
        out.print(f"report: {page}", markup=False)


def _show_comparison(document: dict[str, Any]) -> None:
    from polytask.console import out, table

    columns = ["setting", "task", "metric", "joint", "alone", "gain", "95 % interval", "verdict", "at the kept epoch"]
    rows = []
    for row in document["verdicts"]:
        own, kept = row["own"], row["kept"]
        interval = "" if own["low"] is None else f"{own['low']:+.4f} .. {own['high']:+.4f}"
        numbers = (own["joint"], own["alone"], f"{own['mean']:+.4f}", interval)
        rows.append((row["setting"], row["task"], own["metric"], *numbers, own["verdict"], kept["verdict"]))
    table("joint against alone, at each task's own best epoch", columns, rows)
    for line in document["headline"]:
        out.print(f"- {line}", markup=False)


def _show_tuning(document: dict[str, Any]) -> None:
    from polytask.console import out, table

    tasks = list(document["objectives"])
    rows = [(p["setting"], _brief(p["set"]), *(p["values"][t] for t in tasks)) for p in document["chosen"]]
    table("chosen on validation data", ["setting", "set", *tasks], rows)
    for line in document["notes"]:
        out.print(f"- {visible(line)}", markup=False)


def _brief(changes: dict[str, Any]) -> str:
    return ", ".join(f"{k} = {v:.3g}" if isinstance(v, float) else f"{k} = {v}" for k, v in changes.items())


def _last(run: "Run") -> dict[str, Any]:
    """The scores of the epoch whose weights were kept."""
    return next(h for h in run.history if h["epoch"] == run.kept)


def _show_run(run: "Run") -> None:
    from polytask.console import table

    kept = _last(run)
    rows = [
        (task, name, *(kept[p][task].get(name, "") for p in run.parts()))
        for task in run.tasks
        for name in run.schema.task(task).metrics
        if run.parts()
    ]
    rows += [
        (task, f"{name}, calibrated", *(value if p == "test" else "" for p in run.parts()))
        for task, scores in run.calibrated.items()
        for name, value in scores.items()
    ]
    table(f"epoch {run.kept} of {run.history[-1]['epoch']}", ["task", "metric", *run.parts()], rows)
