"""The application that commands are added to, the options they share, and how errors end.

PyTorch is imported inside the commands, so that ``--help`` is instant.
Exit codes: 0 done; 1 an error that says what to do; 2 wrong usage; 130 interrupted.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from polytask.errors import PolytaskError, visible

app = typer.Typer(
    help="Train, diagnose and compare multi-task recommenders: who gains from sharing a model, and who pays.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Source = Annotated[str, typer.Argument(help="A TOML file, or the name of a built-in experiment (cs330).")]
Set = Annotated[list[str], typer.Option("--set", help="Override a value: --set train.epochs=50. Repeatable.")]
Folder = Annotated[Path | None, typer.Option(help="Where to write; runs/NAME by default. Run again to go on there.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Force = Annotated[bool, typer.Option(help="Go on from a checkpoint of another configuration or thread count.")]
Handout = Annotated[bool, typer.Option("--handout", help="Apply the configuration's [variant.handout].")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes to train in; one per core by default.")]


def main() -> None:
    """Run the command line; an error of the user's is one line on standard error."""
    try:
        app()
    except PolytaskError as error:
        print(f"polytask: {visible(str(error))}", file=sys.stderr)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:  # what PyTorch raises when memory is refused is no class of its own
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        print("polytask: not enough memory; lower model.dim, model.tower or train.batch", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("polytask: interrupted; run the same command to go on", file=sys.stderr)
        sys.exit(130)
