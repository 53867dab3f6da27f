"""Makes a finished run the model that ships with the package.

    python -m sample_build.ship runs/small_sft --to mm1/sample/small

Weights are stored in half precision, without the optimizer: 11 MB for 5.6 M parameters.
"""

import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer

from mm1.checkpoint import Weights, newest, save_weights
from mm1.config.run import load, save

TEXT = ("tokenizer.json", "chat.json")


def ship(run: Path, to: Path) -> None:
    """Write the run's config, text and weights to a new folder `to`.

    Raises:
        FileExistsError: `to` exists.
    """
    if to.exists():
        raise FileExistsError(f"{to} exists; remove it first or write elsewhere")
    weights, config = Weights(run), load(run / "config.json")
    config.lora, config.checkpoints.folder = None, ""  # adapters are merged, and the weights stand beside the config
    part = to.with_name(f"{to.name}.part")
    part.mkdir(parents=True)
    save(config, part / "config.json")
    for name in TEXT:
        shutil.copy(run / name, part / name)
    stored = {name: weights.read(name).to(torch.float16) for name in weights.shapes}
    save_weights(part, stored, step=newest(run).step)
    part.rename(to)


def main(
    run: Annotated[Path, typer.Argument(help="The folder of the finished run.")],
    to: Annotated[Path, typer.Option("--to", help="The new folder.")],
) -> None:
    """Copy a run's config, tokenizer and weights, in half precision, into a new folder."""
    ship(run, to)
    size = sum(file.stat().st_size for file in to.rglob("*") if file.is_file())
    typer.echo(f"{to}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    typer.run(main)
