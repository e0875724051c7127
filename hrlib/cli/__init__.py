"""The command `hrlab`. Commands import what they need when they run, so that help and errors appear at once."""

from __future__ import annotations

import sys

import typer
from typer.core import TyperGroup

from ..errors import HRLibError
from . import methods, notebooks

RESUMABLE = ("run", "invert", "gallery", "train", "fetch")  # given again, these continue where they were interrupted


class Commands(TyperGroup):
    """Tells whoever interrupts a command whether it can be continued."""

    def invoke(self, ctx: typer.Context) -> object:
        """Called by Typer, which would exit without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            more = "; run the same command again to continue" if ctx.invoked_subcommand in RESUMABLE else ""
            print(f"interrupted{more}", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run the notebooks of the HRInversion companion, and apply its methods to your own pictures.",
)
app.add_typer(notebooks.app)
app.add_typer(methods.app)


def main() -> None:
    """Entry point: our own errors, and those of the file system, are printed as messages without a traceback."""
    try:
        app()
    except HRLibError as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr)
        sys.exit(2)
    except OSError as e:
        needed = "files and folders that you may read and write, on disks with free space"
        print(HRLibError(f"{type(e).__name__}: {e}", expected=needed, do="check that path"), file=sys.stderr)
        sys.exit(2)
