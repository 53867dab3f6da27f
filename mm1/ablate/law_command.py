"""`mm1 law fit` and `mm1 law predict`: the learning-rate law of one's own runs."""

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from mm1.ablate.law import FittedLaw, HeldOut
    from mm1.eval.metrics.statistics import Interval

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="The learning-rate law of a search over sizes and rates: fit it, predict by it.",
    epilog="Example: `mm1 law fit runs/learning_rate`, then `mm1 law predict --parameters 3e9 --law law.json`",
)


class LeaveOut(StrEnum):
    """A size that the law is checked with instead of fitted to."""

    largest = "largest"
    smallest = "smallest"


@app.command(
    epilog="Examples: `mm1 law fit runs/learning_rate`, `mm1 law fit runs/learning_rate --measure 8shot`, "
    "`mm1 law fit runs/learning_rate --leave-out largest`"
)
def fit(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of an ablation, or its results.csv.")],
    measure: Annotated[
        str, typer.Option(help="loss: the mean held-out loss. Or a measure of results.csv, such as 8shot, loss/text.")
    ] = "loss",
    leave_out: Annotated[
        LeaveOut | None, typer.Option(help="Fit without this size, and compare the law with what was found there.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", help="File to write; FOLDER/law.json by default.")] = None,
    to_csv: Annotated[Path | None, typer.Option("--csv", help="File to write the points to.")] = None,
) -> None:
    """Fit the law to a search: a parabola over the rate for each size, a line through the minima.

    Writes law.json, which optim.learning_rate=law:FILE takes, and the figure law.svg beside it. A size whose best rate
    is at the edge of its grid is an error that says how to extend the grid.
    """
    from rich.console import Console

    from mm1.ablate.law import LawError, fit_law, held_out
    from mm1.ablate.law_figure import law_figure
    from mm1.ablate.law_record import save_law
    from mm1.ablate.rate_search import read_search, save_points, weight_decays
    from mm1.disk import write_whole

    search, decays = read_search(folder, measure), weight_decays(folder)
    if len(decays) > 1:
        raise LawError(f"the runs of {folder} have the weight decays {decays}; a law of rates needs runs of one")
    left = search.sizes[-1 if leave_out is LeaveOut.largest else 0] if leave_out else None
    law = fit_law(search if left is None else search.without(left))
    check = held_out(law, search.of(left)) if left is not None else None
    name = "-".join(["law", *([measure.replace("/", "-")] * (measure != "loss"))])
    if leave_out:
        name += f"-without-{leave_out.value}"
    target = to or (folder if folder.is_dir() else folder.parent) / f"{name}.json"
    save_law(law, target, source=folder, weight_decays=decays)
    write_whole(target.with_suffix(".svg"), law_figure(law, left_out=check))
    if to_csv:
        save_points(search, to_csv)
    lines = [*_law_lines(law), *([_check_line(check, measure)] if check else []), _decay_line(decays)]
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(_table(law), *lines, sep="\n", highlight=False, soft_wrap=True)
    typer.echo(f"law: {target}\nfigure: {target.with_suffix('.svg')}")


@app.command(
    epilog="Examples: `mm1 law predict --parameters 3e9`, `mm1 law predict --parameters 3e9 --law runs/rates/law.json`"
)
def predict(
    parameters: Annotated[
        float, typer.Option(help="Parameters of the language model without embedding and output matrices.", min=1)
    ],
    law: Annotated[Path | None, typer.Option(help="A law.json of `mm1 law fit`; without it the paper's law.")] = None,
) -> None:
    """Predict the peak learning rate of a size, with its 95 % interval where the law was fitted here."""
    from mm1.ablate.law_record import load_law, recorded_weight_decays
    from mm1.scaling import PAPER

    paper = f"{PAPER.rate(parameters):.3g}"
    if law is None:
        typer.echo(f"{parameters:,.0f} parameters: {paper}, by MM1's law; the paper gives no interval")
        typer.echo("weight decay: 0.1 of the rate, MM1's lambda = 0.1 eta; the paper's rule for all sizes")
        return
    fitted = load_law(law)
    typer.echo(f"{parameters:,.0f} parameters: {_shown(fitted.rate(parameters))}, by {law}; MM1's law: {paper}")
    sizes = fitted.search.sizes
    if not sizes[0] <= parameters <= sizes[-1]:
        typer.echo(
            f"extrapolated: the law was fitted from {sizes[0]:,} to {sizes[-1]:,} parameters, and the interval holds "
            "only as far as it is a straight line"
        )
    typer.echo(_decay_line(recorded_weight_decays(law)))


def _table(law: "FittedLaw") -> "Table":
    """One line a size: its runs, the best rate of its grid, of its parabola, and by the law."""
    from rich.table import Table

    table = Table(*("parameters", "rates", "runs", "best of the grid", "best of the parabola", "by the law"))
    for one, best in zip(law.parabolas, law.best, strict=True):
        search = law.search.of(one.parameters)
        counts = str(len(search.means())), str(len(search.points))
        rates = f"{one.best_rate:.3g}", _shown(best), _shown(law.rate(one.parameters))
        table.add_row(f"{one.parameters:,}", *counts, *rates)
    return table


def _law_lines(law: "FittedLaw") -> list[str]:
    from mm1.scaling import PAPER

    fitted, exponent = law.law, law.exponent
    agrees = exponent.low <= PAPER.exponent <= exponent.high
    return [
        f"law by {law.search.measure}: rate = exp({fitted.exponent:.4f} ln N {fitted.intercept:+.4f})",
        f"exponent {fitted.exponent:.4f} [{exponent.low:.4f}, {exponent.high:.4f}]; MM1's, {PAPER.exponent}, is "
        f"{'inside' if agrees else 'outside'} of the interval",
        f"largest distance of a size from the law: a factor of {law.spread:.2f}",
    ]


def _check_line(check: "HeldOut", measure: str) -> str:
    """What the law predicts for the size that was left out, beside what was found there."""
    best = f"the best of its grid is {check.best_rate:.3g}"
    if check.best:
        best = f"the best of its parabola is {_shown(check.best)}, {best}"
    cost = f"; the predicted rate costs {check.cost:.4f} of {measure}" if check.cost is not None else ""
    reason = f" ({check.reason})" if check.reason else ""
    return f"left out: {check.parameters:,} parameters, predicted {_shown(check.predicted)}; {best}{cost}{reason}"


def _decay_line(decays: Sequence[float]) -> str:
    """What was done with the weight decay, of which the paper says lambda = 0.1 eta (docs/optimizer.md)."""
    if not decays:
        return "weight decay: not recorded beside the results, and not fitted"
    paper = ", MM1's lambda = 0.1 eta" if decays[0] == 0.1 else ""
    return f"weight decay: {decays[0]:g} of the rate in all runs{paper}; held, not fitted"


def _shown(rate: "Interval") -> str:
    return f"{rate.mean:.3g} [{rate.low:.3g}, {rate.high:.3g}]"
