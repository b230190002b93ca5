"""Commands from a run to answers: bundle, recommend, score."""

import json
from pathlib import Path
from typing import Annotated

import typer

from polytask.cli.app import Json, app
from polytask.errors import visible

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
    as_json: Json = False,
) -> None:
    """List the best items for raw ids."""
    import torch

    from polytask.bundle import Bundle
    from polytask.console import table

    torch.set_num_threads(1)
    found = Bundle.load(bundle).recommend(
        k=k, users=user or None, mix=mix or None, history=history, exclude_seen=not seen
    )
    if as_json:
        print(json.dumps(found.to_dicts(), allow_nan=False))
    else:
        rows = [["" if v is None else f"{v:.4f}" if isinstance(v, float) else str(v) for v in r] for r in found.rows()]
        table("recommendations", found.columns, rows)
