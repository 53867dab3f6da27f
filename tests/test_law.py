"""The fitted learning-rate law: against scipy, on simulated searches whose law is known, and what it refuses."""

import csv
import json
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import small

from mm1.__main__ import main
from mm1.ablate.law import FittedLaw, LawError, fit_law, fit_parabola, held_out
from mm1.ablate.law_record import load_law
from mm1.ablate.rate_search import COLUMNS, Point, Search, read_search
from mm1.config import run as config
from mm1.config.base import ConfigError
from mm1.model.sizes import non_embedding_parameters
from mm1.scaling import Law, law
from mm1.train.log import read_metrics
from mm1.train.run import train_run

ROOT = Path(__file__).parents[1]
TRUE = Law(-0.42, -0.55)
SIZES = (300_000, 800_000, 2_000_000, 5_000_000)


def simulated(
    *, seeds: int = 3, noise: float = 0.01, seed: int = 0, sizes: Sequence[int] = SIZES, measure: str = "loss"
) -> Search:
    """Five rates for each size, two apart and not centred on the best, whose values follow `TRUE` up to noise."""
    random = np.random.default_rng(seed)
    sign = 1 if measure == "loss" else -1
    points = []
    for number, parameters in enumerate(sizes):
        for rate in TRUE.rate(parameters) * 2.0 ** np.arange(-2, 3) * (0.8 + 0.15 * number):
            distance = np.log(rate / TRUE.rate(parameters))
            for run in range(seeds):
                value = 4 - 0.1 * np.log(parameters) + 0.06 * distance**2 + random.normal(0, noise)
                points.append(Point(parameters, float(rate), run, sign * value))
    return Search(measure, tuple(points))


def of_one(rates: Sequence[float], values: Sequence[float], *, seeds: int = 2, measure: str = "loss") -> Search:
    points = [
        Point(85_000_000, rate, seed, value + 1e-6 * seed)
        for rate, value in zip(rates, values, strict=True)
        for seed in range(seeds)
    ]
    return Search(measure, tuple(points))


def test_a_search_without_noise_gives_its_law_back():
    fitted = fit_law(simulated(noise=0))
    assert fitted.law.exponent == pytest.approx(TRUE.exponent, abs=1e-9)
    assert fitted.law.intercept == pytest.approx(TRUE.intercept, abs=1e-8)
    assert fitted.spread == pytest.approx(1)
    for parameters in (9e6, 3e9):
        assert fitted.rate(parameters).mean == pytest.approx(TRUE.rate(parameters))


def test_minima_and_law_are_those_of_scipy():
    search = simulated(noise=0.02)
    fitted = fit_law(search)
    minima = []
    for parabola in fitted.parabolas:
        points = search.of(parabola.parameters).points
        x, y = np.log([point.learning_rate for point in points]), [point.value for point in points]

        def shape(x, centre, width, least):
            return least + width * (x - centre) ** 2

        (centre, *_), _ = scipy.optimize.curve_fit(shape, x, y, p0=(x.mean(), 0.1, 3))
        assert np.log(parabola.best) == pytest.approx(centre, abs=1e-5)
        minima.append(centre)
    line = scipy.stats.linregress(np.log(SIZES), minima)
    assert fitted.law.exponent == pytest.approx(line.slope, abs=1e-4)
    assert fitted.law.intercept == pytest.approx(line.intercept, abs=1e-3)


def test_with_many_runs_the_interval_of_a_minimum_is_that_of_least_squares():
    both = simulated(seeds=20, sizes=SIZES[:2])
    search, best = both.of(SIZES[0]), fit_law(both).best[0]
    x, y = np.log([p.learning_rate for p in search.points]), [p.value for p in search.points]
    _, covariance = scipy.optimize.curve_fit(
        lambda x, centre, width, least: least + width * (x - centre) ** 2, x, y, p0=(x.mean(), 0.1, 3)
    )
    half = scipy.stats.t.ppf(0.975, len(x) - 3) * covariance[0, 0] ** 0.5
    assert np.log(best.high / best.low) / 2 == pytest.approx(half, rel=0.1)


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_intervals_hold_the_truth_nineteen_times_in_twenty(seeds):
    """300 searches; with a coverage of 95 % their share is within three standard errors of it."""
    held = []
    for seed in range(300):
        try:
            fitted = fit_law(simulated(seeds=seeds, seed=seed))
        except LawError:
            continue  # noise moved a best rate to the edge; such a search gives no law
        predicted = fitted.rate(3e8)
        held.append(
            (
                fitted.exponent.low <= TRUE.exponent <= fitted.exponent.high,
                predicted.low <= TRUE.rate(3e8) <= predicted.high,
            )
        )
    assert len(held) > 250
    assert np.mean(held, axis=0) == pytest.approx(0.95, abs=0.038)


def test_a_score_is_maximised():
    loss, score = simulated(measure="loss"), simulated(measure="8shot")
    assert score.points[0].value == -loss.points[0].value
    fitted = fit_law(score)
    assert fitted.law.exponent == pytest.approx(fit_law(loss).law.exponent)
    assert all(one.at(one.best) > one.at(one.low) for one in fitted.parabolas)


RATES = (1e-4, 2e-4, 4e-4, 8e-4)


@pytest.mark.parametrize(
    ("rates", "values", "said"),
    [
        (RATES, (3, 3.1, 3.3, 3.6), r"85,000,000 .*0\.0001, is the lowest .*below 0\.0001, for example with 5e-05"),
        (RATES, (3.6, 3.3, 3.1, 3), r"85,000,000 .*0\.0008, is the highest .*above 0\.0008, for example with 0\.0016"),
        (RATES, (3, 3.2, 2.9, 2.95), r"outside of the rates|opens downwards"),
        ((*RATES, 16e-4), (3, 3.6, 2.9, 3.6, 3), r"85,000,000 parameters: the parabola .* opens downwards"),
        (RATES[:2], (3, 2), "at least three rates; found 2"),
    ],
)
def test_a_size_without_a_minimum_inside_its_grid_is_refused_by_name(rates, values, said):
    with pytest.raises(LawError, match=said):
        fit_parabola(of_one(rates, values))


def test_three_runs_are_too_few_to_say_how_sure_a_minimum_is():
    with pytest.raises(LawError, match="3 runs fix a parabola but don't say how sure it is"):
        fit_parabola(of_one(RATES[:3], (3, 2.8, 2.9), seeds=1))


def test_all_sizes_without_a_minimum_are_named_at_once():
    whole = simulated(noise=0)
    cut = [p for p in whole.points if p.parameters in SIZES[:2] or p.learning_rate < TRUE.rate(p.parameters)]
    with pytest.raises(LawError, match=r"2,000,000 parameters: .*; 5,000,000 parameters: "):
        fit_law(Search("loss", tuple(cut)))


def test_rates_far_from_the_best_change_nothing():
    search = simulated(noise=0, sizes=SIZES[:1])
    top = max(point.learning_rate for point in search.points)
    diverged = tuple(Point(SIZES[0], top * factor, seed, 9.0) for factor in (4, 16) for seed in range(3))
    assert fit_parabola(
        Search("loss", search.points + diverged),
    ).best == pytest.approx(TRUE.rate(SIZES[0]))


def test_a_size_left_out_is_compared_with_what_was_found_there():
    search = simulated(seed=1)
    check = held_out(fit_law(search.without(SIZES[-1])), search.of(SIZES[-1]))
    assert check.predicted.low <= TRUE.rate(SIZES[-1]) <= check.predicted.high
    assert check.best is not None
    assert check.best.mean == pytest.approx(TRUE.rate(SIZES[-1]), rel=0.1)
    assert check.cost is not None
    assert 0 <= check.cost < 0.01
    edge = Search("loss", tuple(p for p in search.of(SIZES[-1]).points if p.learning_rate < 1.5 * TRUE.rate(SIZES[-1])))
    assert "is the highest of its grid" in held_out(fit_law(search.without(SIZES[-1])), edge).reason


def write_results(search: Search, folder: Path, *, stores: Sequence[str] = ("captions", "text")) -> Path:
    """`results.csv` as an ablation writes it: the search's values as held-out losses, and scores of eight shots."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "results.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(COLUMNS)
        for p in search.points:
            facts = (p.parameters, p.learning_rate)
            for number, store in enumerate(stores):
                lines.writerow((f"{p.parameters}-{p.learning_rate}", p.seed, f"loss/{store}", p.value + number, *facts))
            lines.writerow((f"{p.parameters}-{p.learning_rate}", p.seed, "8shot", 100 - 10 * p.value, *facts))
    return folder


def test_a_loss_is_the_mean_over_its_stores(tmp_path):
    search = simulated()
    folder = write_results(search, tmp_path)
    for path in (folder, folder / "results.csv"):
        mean = read_search(path, "loss")
        assert [p.value for p in mean.points] == pytest.approx([p.value + 0.5 for p in sorted_points(search)])
    one = read_search(folder, "loss/text")
    assert [p.value for p in one.points] == pytest.approx([p.value + 1 for p in sorted_points(search)])
    with pytest.raises(ConfigError, match="did you mean '8shot'"):
        read_search(folder, "8shots")


def sorted_points(search: Search) -> list[Point]:
    return sorted(search.points, key=lambda p: (p.parameters, p.learning_rate, p.seed))


def mm1(words: Sequence[str], capsys) -> str:
    """The output of a command."""
    sys.argv = ["mm1", *words]
    with pytest.raises(SystemExit) as ended:
        main()
    output = capsys.readouterr()
    assert not ended.value.code, output.err
    return output.out


@pytest.fixture(autouse=True)
def _keeps_argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)


def _check_our_law(page: str, *, whole: str, without_largest: str) -> None:
    """The figures of our own search on the page are those that the commands print."""
    numbers = re.search(r"exponent (-[\d.]+) \[(-[\d.]+), ([\d.]+)\]; MM1's, -0\.4214, is inside", whole)
    assert numbers
    low, mean, high = (f"{float(numbers[group]):.3f}" for group in (2, 1, 3))
    assert f"The exponent is {mean} [{low}, {high}]; MM1's, -0.4214, is inside." in page
    left_out = re.search(
        r"predicted ([\d.]+) .* parabola is ([\d.]+) .* grid is ([\d.]+); .* costs ([\d.]+) of", without_largest
    )
    assert left_out
    for number in left_out.groups():
        assert f" {float(number):.4f}".rstrip("0") in page.replace("\n", " ")


def test_the_commands_of_the_page_run(tmp_path, monkeypatch, capsys):
    write_results(simulated(), tmp_path / "runs/learning_rate")
    (tmp_path / "docs/ablations").mkdir(parents=True)
    shutil.copy(ROOT / "docs/ablations/learning_rate.csv", tmp_path / "docs/ablations")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/law.md").read_text()
    commands = re.findall(r"^mm1 (law .*)$", page, re.MULTILINE)
    assert len(commands) >= 5
    said = [mm1(shlex.split(command), capsys) for command in commands]
    assert "3,000,000,000 parameters: 5.83e-05, by MM1's law" in said[0]
    assert re.search(r"exponent -0\.\d+ \[-0\.\d+, -0\.\d+\]; MM1's, -0\.4214, is inside", said[1])
    assert re.search(r"left out: 5,000,000 parameters, predicted .*the predicted rate costs 0\.00\d+ of loss", said[2])
    assert "weight decay: 0.1 of the rate" in said[0]
    assert "law by 8shot" in said[3]
    assert "weight decay: not recorded" in said[4]
    assert "extrapolated: the law was fitted from 300,000 to 5,000,000 parameters" in said[4]
    _check_our_law(page, whole=said[5], without_largest=said[6])
    files = {path.name for path in (tmp_path / "runs/learning_rate").iterdir()}
    laws = {f"{name}.{kind}" for name in ("law", "law-8shot", "law-without-largest") for kind in ("json", "svg")}
    assert files == {"results.csv", *laws}
    assert len((tmp_path / "points.csv").read_text().splitlines()) == 1 + len(simulated().points)


def test_a_recorded_law_is_the_law_that_was_fitted(tmp_path, capsys):
    folder = write_results(simulated(), tmp_path)
    mm1(["law", "fit", str(folder)], capsys)
    fitted, read = fit_law(read_search(folder, "loss")), load_law(folder / "law.json")
    assert read.law == fitted.law
    assert read.rate(3e9) == fitted.rate(3e9)
    data = json.loads((folder / "law.json").read_text())
    assert data["exponent_interval"] == [fitted.exponent.low, fitted.exponent.high]
    assert [size["parameters"] for size in data["sizes"]] == list(SIZES)
    assert (data["measure"], data["source"]) == ("loss", str(folder))
    data["exponent"] = -1
    (folder / "law.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=r"the exponent -1\.0+, but its points give -0\.4"):
        load_law(folder / "law.json")


def test_the_figure_has_every_size_and_both_laws(tmp_path, capsys):
    folder = write_results(simulated(), tmp_path)
    mm1(["law", "fit", str(folder), "--leave-out", "largest"], capsys)
    figure = (folder / "law-without-largest.svg").read_text()
    assert figure.startswith("<svg")
    for text in ("300k", "800k", "2M", "MM1's, -0.421", "fitted, -0.4", "left out of the fit"):
        assert text in figure, text
    assert figure.count("5M<") == 1  # a tick, and no parabola


def test_runs_of_several_weight_decays_give_no_law(tmp_path, monkeypatch, capsys):
    folder = write_results(simulated(), tmp_path)
    runs = {
        str(number): {"scored": True, "config": {"optim": optim} if optim else {}}
        for number, optim in enumerate([{}, {"weight_decay": 0.1}])
    }
    (folder / "ablation.json").write_text(json.dumps({"runs": runs}))
    assert "weight decay: 0.1 of the rate in all runs, MM1's lambda = 0.1 eta; held" in mm1(
        ["law", "fit", str(folder)], capsys
    )
    runs["0"]["config"] = {"optim": {"weight_decay": 0.01}}
    (folder / "ablation.json").write_text(json.dumps({"runs": runs}))
    sys.argv = ["mm1", "law", "fit", str(folder)]
    with pytest.raises(SystemExit):
        main()
    assert "the weight decays [0.01, 0.1]; a law of rates needs runs of one" in capsys.readouterr().err


def test_a_run_takes_its_rate_from_a_file_and_records_the_rate(stores, tmp_path):
    (tmp_path / "law.json").write_text(json.dumps({"exponent": -0.5, "intercept": 0.25}))
    run = config.override(small.run(stores), [f"optim.learning_rate=law:{tmp_path}/law.json", "steps=2"])
    train_run(run, tmp_path / "run")
    recorded = config.load(tmp_path / "run/config.json")
    rate = Law(-0.5, 0.25).rate(non_embedding_parameters(run.model.decoder))
    assert recorded.optim.learning_rate == rate
    assert max(step.get("learning_rate", 0) for step in read_metrics(tmp_path / "run")) == pytest.approx(rate)
    assert train_run(run, tmp_path / "run") == tmp_path / "run"
    (tmp_path / "law.json").unlink()
    assert train_run(recorded, tmp_path / "run") == tmp_path / "run"
    with pytest.raises(ConfigError, match=rf"no law at {tmp_path}/law\.json.*mm1 law fit FOLDER"):
        train_run(run, tmp_path / "run")


def test_a_rate_is_a_number_or_a_law(tmp_path):
    for value in ("many", "laws", "lawful:x"):
        with pytest.raises(ConfigError, match=r"optim\.learning_rate: expected a number, law \(the paper's\)"):
            config.override(config.RunConfig(), [f"optim.learning_rate={value}"])
    (tmp_path / "law.json").write_text("{}")
    run = config.override(config.RunConfig(), [f"optim.learning_rate=law:{tmp_path}/law.json"])
    with pytest.raises(ConfigError, match="holds no law"):
        train_run(run, tmp_path / "run")


def test_the_papers_law_needs_no_file():
    assert law(3e9) == pytest.approx(5.83e-5, rel=0.01)
    fitted: FittedLaw = fit_law(simulated())
    assert fitted.exponent.low < -0.4214 < fitted.exponent.high
