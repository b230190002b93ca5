"""Commands from a run to answers: bundle, recommend, score."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from polytask.cli.app import Json, app
from polytask.errors import ConfigError, visible

At = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder.")]
MixOption = Annotated[str, typer.Option(metavar="EXPR", help="Order by this: 'watch * rating ** 0.5'.")]


@app.command()
def bundle(
    run: Annotated[Path, typer.Argument(help="A run's folder, also one of a comparison.")],
    to: Annotated[Path | None, typer.Option(help="Where to write; bundle/ in the run's folder by default.")] = None,
    mix: MixOption = "",
    report: Annotated[Path | None, typer.Option(help="A report.json whose verdicts go along.")] = None,
    as_json: Json = False,
) -> None:
    """Make a bundle of a finished run: one folder from which it recommends for raw ids."""
    import torch

    from polytask.bundle import Bundle
    from polytask.console import out
    from polytask.revive import revive

    torch.set_num_threads(1)
    found, text = revive(run)
    beside = run.resolve().parents[1] / "report.json"
    verdicts = report or (beside if beside.is_file() else None)
    path = Bundle.save(to or run / "bundle", found, mix=mix or None, report=verdicts, toml=text)
    made = Bundle.load(path)
    if as_json:
        print(json.dumps({"bundle": str(path), "version": made.version, "mix": made.mix.text}))
    else:
        out.print(visible(f"bundle: {path} (version {made.version}, ordered by {made.mix.text})"), markup=False)


@app.command()
def recommend(
    bundle: At,
    user: Annotated[list[str], typer.Option(help="A user's id. Repeatable; none asks for nobody in particular.")] = [],
    k: Annotated[int, typer.Option("-k", "--k", min=1, max=1000, help="Items per user.")] = 10,
    mix: MixOption = "",
    history: Annotated[list[str], typer.Option(help="An item just seen. Repeatable.")] = [],
    seen: Annotated[bool, typer.Option("--seen/--no-seen", help="List what the user had, too.")] = False,
    users: Annotated[Path | None, typer.Option(help="A file with a column of users' ids; with --to.")] = None,
    to: Annotated[Path | None, typer.Option(help="Write a .parquet or .csv, without --users for all users.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that write it.")] = 1,
    as_json: Json = False,
) -> None:
    """List the best items for raw ids; with --to for a file of users, and the same command goes on if it was cut."""
    import torch

    from polytask.bundle import Bundle
    from polytask.console import progress, table
    from polytask.recommend.bulk import recommend_all
    from polytask.recommend.mix import Mix
    from polytask.recommend.query import Query

    torch.set_num_threads(1)
    shipped = Bundle.load(bundle)
    if users is not None or to is not None:
        if to is None or user or history:
            raise ConfigError("--users and --to go together, and without --user and --history")
        query = Query(k=k, mix=Mix.parse(mix, shipped.tasks) if mix else None, exclude_seen=not seen)
        with progress("users") as tell:
            recommend_all(shipped, users, to, query, workers=workers, progress=partial(tell, "users"))
        print(json.dumps({"to": str(to)}) if as_json else f"recommendations: {visible(str(to))}")
        return
    found = shipped.recommend(k=k, users=user or None, mix=mix or None, history=history, exclude_seen=not seen)
    if as_json:
        print(json.dumps(found.to_dicts(), allow_nan=False))
    else:
        rows = [["" if v is None else f"{v:.4f}" if isinstance(v, float) else str(v) for v in r] for r in found.rows()]
        table("recommendations", found.columns, rows)


@app.command()
def serve(
    bundle: At,
    host: Annotated[str, typer.Option(help="Where to listen; any but this machine's own needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    token_file: Annotated[Path | None, typer.Option(help="A file whose token every request must bear.")] = None,
    allow_host: Annotated[list[str], typer.Option(help="A name the server is reached by. Repeatable.")] = [],
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with a copy of the bundle.")] = 1,
    watch: Annotated[bool, typer.Option("--watch", help="Load a new bundle behind the same path by itself.")] = False,
    report: Annotated[Path | None, typer.Option(help="A report.html that the page links to.")] = None,
) -> None:
    """Serve a bundle over HTTP, with a page to look at it; loads it anew at SIGHUP and ends at SIGTERM."""
    from polytask.serve import Options
    from polytask.serve import serve as start

    start(Options(bundle, host, port, token_file, tuple(allow_host), workers, watch, report))


@app.command()
def export(
    bundle: At,
    to: Annotated[Path, typer.Option(help="The folder to write; an earlier export there is replaced.")],
    formats: Annotated[
        str, typer.Option("--format", metavar="NAMES", help="Of onnx, pt2 and vectors, with commas between.")
    ] = "onnx,pt2,vectors",
    as_json: Json = False,
) -> None:
    """Write a bundle's model for other programs; every file is run against the bundle first."""
    import torch

    from polytask.bundle import Bundle
    from polytask.console import out
    from polytask.export import export as write
    from polytask.export import summary

    torch.set_num_threads(1)
    facts = write(Bundle.load(bundle), to, [name.strip() for name in formats.split(",") if name.strip()])
    if as_json:
        print(json.dumps({"to": str(to)} | facts, allow_nan=False))
        return
    for line in summary(to, facts):
        out.print(visible(line), markup=False)
