"""What a command says when the user stops it: that the same command continues."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from mm1.train.coordinator import Stopped


@contextmanager
def continues() -> Iterator[None]:
    """Say how to continue after Ctrl-C and SIGTERM, and exit with their codes; Typer would exit without a message."""
    try:
        yield
    except Stopped as stopped:
        typer.echo(f"{stopped}, which is saved; the same command continues", err=True)
        raise typer.Exit(143) from None
    except KeyboardInterrupt:
        typer.echo("stopped; the same command continues from the last checkpoint", err=True)
        raise typer.Exit(130) from None
