"""`mm1 ablate`: plan, say what it will take, run, and leave the comparison."""

from pathlib import Path
from typing import Annotated

import typer

from mm1.config.options import Assignments, RunnerName, To, one_of

FAILED = 3
"""The exit status if a run failed."""


def ablate(
    name: Annotated[
        str, typer.Argument(metavar="NAME|FILE.py", help="An ablation, or a Python file that returns one.")
    ],
    assignments: Assignments = None,
    to: To = None,
    scale: Annotated[
        str, typer.Option(help="tiny: for this machine, on the shipped sample. paper: MM1's own.")
    ] = "tiny",
    seeds: Annotated[int, typer.Option(help="How many seeds each arm is trained with.", min=1)] = 3,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print arms, runs and cost, and train nothing.")] = False,
    runner: Annotated[RunnerName, typer.Option(help="native: on this machine. ray: on a cluster.")] = RunnerName.native,
    workers: Annotated[int, typer.Option(help="Runs at once, each in its own process.", min=1)] = 1,
    address: Annotated[str, typer.Option(help="Address of the Ray cluster; without it Ray is started here.")] = "",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the table of what is finished as CSV.")] = False,
    as_latex: Annotated[bool, typer.Option("--latex", help="Print it as LaTeX.")] = False,
) -> None:
    """Train the arms of an ablation, score them few-shot, and compare them on one page with intervals.

    Stages that arms share are trained once. Given again, the same command continues a stopped ablation. A run that
    fails stops no other; the exit status is 3 then. `STAGE:FIELD=VALUE` changes one stage, `FIELD=VALUE` all of them.
    """
    from mm1.ablate.sweep import Request, print_table, run_ablation
    from mm1.cluster import Runner
    from mm1.train.continued import continues

    folder = to or Path("runs") / f"ablate-{Path(name.partition(':')[0]).stem}"
    if as_csv or as_latex:
        print_table(folder, "csv" if as_csv else "latex")
        return
    request = Request(
        name=name,
        scale=one_of(scale, "--scale", ("tiny", "paper")),
        seeds=seeds,
        assignments=tuple(assignments or ()),
        folder=folder,
    )
    with continues():
        failed = run_ablation(request, runner=Runner(runner.value, address, workers), dry_run=dry_run)
    if failed:
        raise typer.Exit(FAILED)
