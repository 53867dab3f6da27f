"""Write docs/lessons.md: each lesson of the paper beside what our own runs show.

    mm1 ablate mix --to runs/mix && cp runs/mix/results.csv docs/ablations/mix.csv
    python docs/make_lessons.py

Every number is computed from docs/ablations/NAME.csv, the results.csv of an ablation at tiny scale; a test compares the
page with them. A lesson without such a file says "not run yet".
"""

import csv
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mm1.ablate.intervals import interval
from mm1.ablate.law import LawError, fit_law
from mm1.ablate.rate_search import read_search
from mm1.eval.metrics.statistics import Interval
from mm1.recipes.ablations.index import ABLATIONS
from mm1.scaling import PAPER

DOCS = Path(__file__).parent
MEASURES = ("0shot", "4shot", "8shot", "0shot-likelihood", "8shot-likelihood", "loss/captions", "loss/text")
"""The columns of the tables of all arms."""

FEW, ZERO, TEXT, TUNED = "8shot-likelihood", "0shot-likelihood", "loss/text", "0shot-likelihood"
SEEN = "loss/captions"

Values = Callable[..., np.ndarray]
"""The values of arms by seed, their mean if there are several; a larger one is better, so losses are negative."""


@dataclass(frozen=True)
class Comparison:
    """What one ablation says of a lesson: `difference` is above 0 where the lesson holds."""

    says: str
    ablation: str
    measure: str
    arms: tuple[str, ...]
    difference: Callable[[Values], np.ndarray]


@dataclass(frozen=True)
class Lesson:
    """A lesson of the paper. `comparisons` are empty where no arm of ours tests it, or where the law does."""

    name: str
    paper: str
    comparisons: tuple[Comparison, ...]
    note: str
    is_law: bool = False


@dataclass(frozen=True)
class Finding:
    """The outcome of one comparison."""

    says: str
    ablation: str
    measure: str
    value: str
    verdict: str


def better(says: str, ablation: str, measure: str, *, good: Sequence[str], bad: Sequence[str]) -> Comparison:
    """The mean of the arms `good` less that of `bad`."""
    return Comparison(says, ablation, measure, (*good, *bad), lambda values: values(*good) - values(*bad))


def kinds_matter_less() -> Comparison:
    """The effect of tokens and pixels together, less the largest difference between two kinds of connector."""
    kinds = ("average", "attention", "c_abstractor")
    sizes = [(tokens, pixels) for tokens in (4, 16) for pixels in (96, 144)]
    arms = {(kind, *size): f"{kind}-{size[0]}-{size[1]}px" for kind in kinds for size in sizes}

    def difference(values: Values) -> np.ndarray:
        most, least = (values(*(arms[kind, *size] for kind in kinds)) for size in ((16, 144), (4, 96)))
        means = np.array([values(*(arms[kind, *size] for size in sizes)) for kind in kinds])
        return (most - least) - (means.max(axis=0) - means.min(axis=0))

    says = "16 tokens at 144 px over 4 at 96 px, less the largest difference of two kinds"
    return Comparison(says, "connector", FEW, tuple(arms.values()), difference)


def connectors(*, tokens: Sequence[int] = (4, 16), pixels: Sequence[int] = (96, 144)) -> list[str]:
    """The arms of all kinds with these numbers of tokens and pixels."""
    kinds = ("average", "attention", "c_abstractor")
    return [f"{kind}-{count}-{side}px" for kind in kinds for count in tokens for side in pixels]


LESSONS = (
    Lesson(
        "The image encoder",
        "Table 1: “Image resolution has the highest impact, followed by model size and training data composition.”",
        (
            better("144 px over 96 px", "encoder", SEEN, good=("base-144", "small-144"), bad=("base-96", "small-96")),
            better(
                "four layers over two", "encoder", SEEN, good=("base-96", "base-144"), bad=("small-96", "small-144")
            ),
            better("all captions over one making", "encoder", SEEN, good=("base-96",), bad=("base-96-one",)),
            better("resolution over size", "encoder", SEEN, good=("small-144",), bad=("base-96",)),
            better("size over data", "encoder", SEEN, good=("base-96-one",), bad=("small-96",)),
            better("contrastive over reconstructive", "encoder", SEEN, good=("base-96",), bad=("reconstructive-96",)),
        ),
        "The encoders are contrastive ones of two to four layers, trained on the shipped captions, and one of AIM's "
        "kind for as much arithmetic. All runs were trained on an H200, in bf16. Their scoring failed there, which is "
        "mended ([log.md](log.md)), so arms are compared by the held-out loss of captions, which follow their picture; "
        "those of pages and text differ by at most 0.013.",
    ),
    Lesson(
        "The connector",
        "Figure 4: “Number of visual tokens and image resolution matters most, while the type of VL "
        "connector has little effect.”",
        (
            better("16 tokens over 4", "connector", FEW, good=connectors(tokens=(16,)), bad=connectors(tokens=(4,))),
            better("144 px over 96 px", "connector", FEW, good=connectors(pixels=(144,)), bad=connectors(pixels=(96,))),
            kinds_matter_less(),
        ),
        "The paper compares 64 and 144 tokens at 224 and 336 px. The largest of three noisy differences is too large "
        "on average, so the last line errs against the lesson. After our 250 steps neither tokens nor pixels show an "
        "effect of their own, so that line is little more than the noise between kinds.",
    ),
    Lesson(
        "Interleaved pages and captions",
        "Figure 5a: “Interleaved data is instrumental for few-shot and text-only performance, while "
        "captioning data lifts zero-shot performance.”",
        (
            better("half interleaved over captions: 8 shots", "mix", FEW, good=("9:9:2",), bad=("captions 18:0:2",)),
            better("half interleaved over captions: text", "mix", TEXT, good=("9:9:2",), bad=("captions 18:0:2",)),
            better(
                "captions over interleaved: 0 shots", "mix", ZERO, good=("captions 18:0:2",), bad=("captions 0:18:2",)
            ),
        ),
        "Text is measured by its held-out loss; the paper's TextCore needs larger models. Our captions never have text "
        "before a picture, as prompts do; probably that is why they don't lift answers without shots.",
    ),
    Lesson(
        "Text",
        "Figure 5b: “Text-only data helps with few-shot and text-only performance.”",
        (
            better("a tenth of text over none: 8 shots", "mix", FEW, good=("9:9:2",), bad=("image:text 100:0",)),
            better("a tenth of text over none: text", "mix", TEXT, good=("9:9:2",), bad=("image:text 100:0",)),
            better("captions with text over without", "mix", FEW, good=("captions 18:0:2",), bad=("captions alone",)),
        ),
        "",
    ),
    Lesson(
        "The share of text",
        "Figure 5c: “Careful mixture of image and text data can yield optimal multimodal performance and retain strong "
        "text performance.”",
        (
            better("a tenth of text over a third: 8 shots", "mix", FEW, good=("9:9:2",), bad=("image:text 67:33",)),
            better("a tenth of text over none: text", "mix", TEXT, good=("9:9:2",), bad=("image:text 100:0",)),
        ),
        "",
    ),
    Lesson(
        "Synthetic captions",
        "Figure 5d: “Synthetic data helps with few-shot learning.”",
        (),
        "No arm of ours tests it: the shipped sample has no synthetic captions.",
    ),
    Lesson(
        "The learning-rate law",
        f"Figure 6: the best rate goes with the parameters to the power of {PAPER.exponent}.",
        (),
        "Language models of 0.3 M to 5 M parameters on text alone, by held-out loss; the paper compares 8-shot scores "
        "of 9 M to 1.2 B. `mm1 law fit docs/ablations/learning_rate.csv` prints the same figures; [law.md](law.md) has "
        "them, and what the law of the smaller sizes predicts for the largest.",
        is_law=True,
    ),
    Lesson(
        "The weight decay",
        "Section 3.4: lambda is a tenth of the rate, 0.1 in PyTorch's terms, instead of a search for each size.",
        (
            better("0.1 over 0.01", "weight_decay", FEW, good=("decay 0.1",), bad=("decay 0.01",)),
            better("0.1 over 1", "weight_decay", FEW, good=("decay 0.1",), bad=("decay 1",)),
        ),
        "",
    ),
    Lesson(
        "Starts",
        "Section 4: encoder and language model both start pre-trained. The paper shows no run without.",
        (
            better("both over the encoder alone", "start", FEW, good=("both",), bad=("encoder alone",)),
            better("both over the language model alone", "start", FEW, good=("both",), bad=("language model alone",)),
        ),
        "",
    ),
    Lesson(
        "Nothing frozen",
        "Section 4: “all models are pre-trained entirely unfrozen”. The paper shows no run with frozen parts.",
        (
            better("nothing over the encoder", "frozen", FEW, good=("nothing frozen",), bad=("encoder frozen",)),
            better(
                "nothing over the language model",
                "frozen",
                FEW,
                good=("nothing frozen",),
                bad=("language model frozen",),
            ),
        ),
        "",
    ),
    Lesson(
        "Experts",
        "Section 4: the sparse models score above the dense ones of the same arithmetic.",
        (better("sparse over dense", "experts", FEW, good=("sparse",), bad=("dense",)),),
        "Four experts in every second layer; the paper has 64 or 32.",
    ),
    Lesson(
        "Resolution in fine-tuning",
        "Figure 7b: 1344 px score 15 % above 336 px on average.",
        (
            better("144 px over 96 px", "resolution", TUNED, good=("144 px",), bad=("96 px",)),
            better("192 px in tiles over 96 px", "resolution", TUNED, good=("192 px",), bad=("96 px",)),
        ),
        "",
    ),
    Lesson(
        "Steps of pre-training",
        "Figure 7c: scores after fine-tuning rise steadily with the steps of pre-training.",
        (
            better("250 steps over 125", "steps", TUNED, good=("250 steps",), bad=("125 steps",)),
            better("125 steps over 62", "steps", TUNED, good=("125 steps",), bad=("62 steps",)),
        ),
        "",
    ),
)


def findings(lesson: Lesson, folder: Path) -> list[Finding]:
    """The outcome of each comparison of a lesson, from the CSVs in `folder`."""
    if lesson.is_law:
        return [_law(folder / "learning_rate.csv")]
    return [_compared(one, folder / f"{one.ablation}.csv") for one in lesson.comparisons]


def _compared(one: Comparison, path: Path) -> Finding:
    table = _by_arm(path, one.measure)
    seeds = sorted(set.intersection(*(set(table.get(arm, {})) for arm in one.arms)))
    if not seeds:
        return Finding(one.says, one.ablation, one.measure, "", "not run yet")

    def values(*arms: str) -> np.ndarray:
        return np.mean([[table[arm][seed] for seed in seeds] for arm in arms], axis=0)

    change = interval([one.difference(values)[:, None]])
    return Finding(one.says, one.ablation, one.measure, _shown(change, len(seeds)), _verdict(change))


def _by_arm(path: Path, measure: str) -> dict[str, dict[int, float]]:
    """The values of a measure by arm and seed; losses negative, so that larger is better."""
    sign = -1 if measure.startswith("loss") else 1
    table: dict[str, dict[int, float]] = {}
    if path.is_file():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row["measure"] == measure:
                    table.setdefault(row["arm"], {})[int(row["seed"])] = sign * float(row["value"])
    return table


def _law(path: Path) -> Finding:
    says = f"the interval of the exponent holds {PAPER.exponent}"
    if not path.is_file():
        return Finding(says, "learning_rate", "loss", "", "not run yet")
    try:
        exponent = fit_law(read_search(path, "loss")).exponent
    except LawError as error:
        return Finding(says, "learning_rate", "loss", f"no law: {error}", "not resolved")
    holds = exponent.low <= PAPER.exponent <= exponent.high
    value = f"{exponent.mean:.3f} [{exponent.low:.3f}, {exponent.high:.3f}]"
    return Finding(says, "learning_rate", "loss", value, "agrees" if holds else "disagrees")


def _verdict(change: Interval) -> str:
    return "agrees" if change.above_zero else "disagrees" if change.below_zero else "not resolved"


def _shown(change: Interval, seeds: int) -> str:
    if seeds == 1:
        return f"{change.mean:+.3f}, one seed"
    return f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"


def overall(outcomes: Sequence[Finding]) -> str:
    """The verdict on a lesson: `agrees` if all its comparisons do, `disagrees` if one does."""
    verdicts = {one.verdict for one in outcomes}
    if not verdicts:
        return "not tested"
    for verdict in ("disagrees", "not run yet", "not resolved"):
        if verdict in verdicts:
            return verdict
    return "agrees"


HEAD = """# The paper's lessons in our own runs

<!-- written by docs/make_lessons.py from docs/ablations/*.csv -->

Each lesson of MM1 beside what [ablations](ablations.md) at tiny scale show: the demo's model on the shipped sample.
What a model of 2.4 M parameters does on clip art is no proof of what happens at 3 B on photographs; an agreement says
that these runs show the effect, a disagreement that scale or data matter to it. Quoted words are transcribed from
copies of the paper.

A difference is above 0 where the lesson holds. It is one of log-likelihoods of the right answer, in nats per token,
after 8 shots or none, or of held-out losses with the sign changed. Its 95 % interval is over seeds, and for the law
over runs. "Agrees" and "disagrees" mean that the interval excludes 0, which one interval in twenty does by chance. "Not
resolved" does not mean that there is no difference. A lesson agrees if all its lines do.

```bash
mm1 ablate mix --to runs/mix
cp runs/mix/results.csv docs/ablations/mix.csv
cp runs/mix/figure.svg docs/ablations/mix.svg
python docs/make_lessons.py
```
"""


def page(folder: Path) -> str:
    """The page, with the numbers of the CSVs in `folder`."""
    outcomes = [(lesson, findings(lesson, folder)) for lesson in LESSONS]
    lines = [HEAD, "| lesson | our runs |", "|---|---|"]
    lines += [f"| {lesson.name} | {overall(shown)} |" for lesson, shown in outcomes]
    for lesson, shown in outcomes:
        lines += ["", f"## {lesson.name}", "", textwrap.fill(f"{lesson.paper} {lesson.note}", 118)]
        if shown:
            lines += ["", "| compared | ablation | measure | difference | verdict |", "|---|---|---|---|---|"]
            lines += [
                f"| {one.says} | {_linked(one.ablation, folder)} | `{one.measure}` | {one.value} | {one.verdict} |"
                for one in shown
            ]
    for ablation in ABLATIONS:
        if (folder / f"{ablation}.csv").is_file():
            lines += ["", f"## All arms of {_linked(ablation, folder)}", "", *_arms(folder / f"{ablation}.csv")]
    return "\n".join(lines) + "\n"


def _arms(path: Path) -> list[str]:
    """The table of all arms: the mean over seeds of each measure over all tasks."""
    tables = {measure: by_arm for measure in MEASURES if (by_arm := _by_arm(path, measure))}
    seeds = {arm: len(of_arm) for by_arm in tables.values() for arm, of_arm in by_arm.items()}
    lines = [f"| arm | seeds | {' | '.join(tables)} |", "|---" * (2 + len(tables)) + "|"]
    for arm, count in seeds.items():
        cells = [_mean(by_arm.get(arm, {}), measure) for measure, by_arm in tables.items()]
        lines.append(f"| {arm} | {count} | {' | '.join(cells)} |")
    return lines


def _mean(values: dict[int, float], measure: str) -> str:
    """The mean over seeds: a score with one decimal, a loss (which is kept negative) or a likelihood with three."""
    if not values:
        return ""
    mean = float(np.mean([*values.values()]))
    return f"{mean:.1f}" if measure.endswith("shot") else f"{-mean if measure.startswith('loss') else mean:.3f}"


def _linked(ablation: str, folder: Path) -> str:
    """The ablation's name, with a link to its figure where there is one."""
    figure = folder / f"{ablation}.svg"
    return f"[`{ablation}`](ablations/{figure.name})" if figure.is_file() else f"`{ablation}`"


if __name__ == "__main__":
    (DOCS / "lessons.md").write_text(page(DOCS / "ablations"))
