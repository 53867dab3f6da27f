"""The pages: a run's report, the mix, and a packed sequence with its checks."""

import dataclasses
import importlib.util
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from conftest import picture

from mm1.config import run as config
from mm1.config.run import DataConfig, RunConfig, SourceConfig
from mm1.data.loader import Sequences
from mm1.document import Batch, Document, Image, Mark, Text
from mm1.eval.caption_loss import CaptionLoss
from mm1.eval.harness import load_task
from mm1.eval.metrics.statistics import Interval
from mm1.eval.results import Results, TaskScore, save_results
from mm1.report.figures import REWOUND, SKIPPED, MarkedSteps, Panel, losses, panels
from mm1.report.findings import findings
from mm1.report.mix import mix_page, source_totals
from mm1.report.page import report
from mm1.report.progress import marked_steps, progress
from mm1.report.sequence import checks, document_page, sequence_page
from mm1.tiling import TileSpec
from mm1.train.log import read_metrics

ROOT = Path(__file__).parents[1]
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Text, tags and addresses of a page; complains of a tag that is closed out of order."""

    def __init__(self, source: str):
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.feed(source)
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.tags.append((tag, named))
        self.addresses += [named[name] for name in ("src", "href") if named.get(name)]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def cell(shots: int, *, difference: float, gain: float | None = None, score: float = 40.0, **changes) -> TaskScore:
    """Intervals reach 2 points to both sides."""

    def around(mean: float) -> Interval:
        return Interval(mean, mean - 2, mean + 2)

    base = TaskScore(
        task="captions",
        shots=shots,
        queries=8,
        score=around(score),
        blind=around(score - difference),
        difference=around(difference),
        gain=None if gain is None else around(gain),
        majority=10.0,
        majority_answer="a <b>dog</b>",
        chance=12.0,
        longest_prompt=100,
        model_name="step 4",
        seed=0,
        limit=8,
    )
    return dataclasses.replace(base, **changes)


def a_run(folder: Path, *, start_from: dict[str, str] | None = None) -> Path:
    """A run's folder with records of four steps; one lacks keys and the last line is torn."""
    folder.mkdir(parents=True)
    run = RunConfig(
        recipe="custom",
        steps=4,
        start_from=start_from or {},
        data=DataConfig(
            sources={"captions": SourceConfig(store="a", share=3), "text": SourceConfig(store="b")},
            validation={"captions": "c"},
        ),
    )
    config.save(run, folder / "config.json")
    records = [
        {"step": step, "loss": 5.0 - step, "loss/captions": 4.5 - step, "step_seconds": 1.0, "learning_rate": 1e-3}
        | {
            "sequences/captions": 6,
            "sequences/text": 2,
            "tokens/captions": 100,
            "tokens/text": 300,
            "images/captions": 12,
        }
        for step in (1, 2)
    ]
    records += [{"step": 3, "loss": 1.5}, {"step": 3, "validation/captions": 1.25}]
    lines = [json.dumps(record) for record in records]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 4, "lo']))
    return folder


def add_scores(folder: Path) -> None:
    """Answers to eight of the sample's held-out pictures, half of them right."""
    cells = [cell(0, difference=0.5), cell(4, difference=5.0, gain=3.0)]
    task = load_task("captions", limit=8, seed=0)
    (folder / "eval").mkdir()
    for one in cells:
        lines = [
            {
                "query": query.id,
                "prompt": "x",
                "request": "x",
                "shots": ["s"] * one.shots,
                "answer": query.answers[0] if number % 2 else "<script>no</script>",
                "references": list(query.answers),
                "score": float(number % 2),
                "blind_answer": "a blind guess",
                "blind_score": 0.0,
                "places": 9,
                "settings": "m",
            }
            for number, query in enumerate(task.queries)
        ]
        path = folder / "eval" / f"captions-{one.shots}shot.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    losses = [CaptionLoss("captions", 8, *(Interval(2.0, 1.9, 2.1),) * 2, Interval(0.0, -0.1, 0.1), "step 4")]
    save_results(Results(cells, losses), folder / "eval")


def test_a_report_stands_alone(tmp_path: Path):
    run = a_run(tmp_path / "main")
    add_scores(run)
    page = Page(report(run).read_text())
    assert page.addresses
    assert all(address.startswith(("data:", "#")) for address in page.addresses), page.addresses
    assert not any(tag in ("script", "link") for tag, _ in page.tags)
    assert sum(tag == "img" for tag, _ in page.tags) == 14  # four right and four wrong, three of each at the top
    assert sum(tag == "svg" for tag, _ in page.tags) == 4  # gains, losses, how it went, scores
    sentence = "after 3 steps in 0.0 minutes with 24 pictures and 800 trained tokens of captions and text."
    assert sentence in page.text
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    assert "<script>no</script>" in page.text  # what a model wrote is shown, never run
    assert "40.0 [38.0, 42.0]" in page.text


def test_a_report_draws_how_the_run_went_and_marks_what_went_wrong(tmp_path: Path):
    run = a_run(tmp_path / "main")
    records = [
        {"step": step, "loss": 1.0, "gradient_norm": 0.5, "gradient_norm/vision": 0.1, "mfu": 0.4, "memory_gib": 7.25}
        | {"data_wait": 0.1, "mfu/vision": 0.1, "health/connector/rms": 1.0, "health/connector/huge": 0.0}
        for step in range(1, 9)
    ]
    records[2] = {"step": 3, "gradient_norm": 0.5, "skipped": 1}
    records[4]["skipped"] = records[5]["skipped"] = 1
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    spike = {"step": 6, "first": 5, "loss": 9.0, "usual": 1.0, "limit": 2.0}
    (run / "rewinds.jsonl").write_text(json.dumps(spike) + "\n")
    text = Page(report(run).read_text()).text
    assert "Step 6: loss 9.000, where 1.000 was usual and 2.000 the limit." in text
    assert "without a finite loss or gradient: step 3." in text
    assert "7.2 GiB" in text
    for title in ("gradient norm", "waiting for data", "peak memory, GiB", "RMS of layer outputs", "with padding"):
        assert (title in text) == (title != "with padding")  # what is not on record is not drawn
    marked = marked_steps(run, records)
    assert (marked.skipped, marked.rewound) == ([3, 5, 6], [6])
    drawing = progress("main", records, marked=marked)
    axes = drawing.count("-axes_")
    assert drawing.count(SKIPPED) == 3 * axes
    assert drawing.count(REWOUND) == axes


def test_a_long_run_is_drawn_with_few_points():
    points = [(step, 1.0 + step % 7) for step in range(1, 20_001)]
    for drawing in (
        losses("a", {"text": points}, held_out={}, unit="token", marked=MarkedSteps()),
        panels("b", [Panel("speed", {"": points})], marked=MarkedSteps()),
    ):
        assert len(drawing) < 100_000


def test_a_report_shows_runs_in_the_order_they_were_trained(tmp_path: Path):
    encoder = a_run(tmp_path / "encoder")
    main = a_run(tmp_path / "main", start_from={"vision": str(encoder)})
    tuned = a_run(tmp_path / "tuned", start_from={"model": str(main)})
    add_scores(tuned)
    page = Page(report(main, others=[tuned, encoder]).read_text())
    assert [attributes["id"] for tag, attributes in page.tags if tag == "section"] == ["encoder", "main", "tuned"]
    assert "a blind guess" in page.text


def test_a_report_of_a_run_that_has_only_begun(tmp_path: Path):
    run = a_run(tmp_path / "main")
    (run / "metrics.jsonl").unlink()
    assert "No metrics.jsonl yet." in Page(report(run).read_text()).text


@pytest.mark.parametrize(("unit", "name"), [("sequences", "sequences"), ("tokens", "trained tokens")])
def test_the_requested_shares_name_their_unit(tmp_path: Path, unit: str, name: str):
    run = a_run(tmp_path / "main")
    recorded = config.load(run / "config.json")
    recorded.data.unit = unit
    config.save(recorded, run / "config.json")
    assert f"requested share of {name}" in Page(report(run).read_text()).text


def test_records_survive_torn_lines_and_the_mix_adds_up(tmp_path: Path):
    run = a_run(tmp_path / "main")
    records = read_metrics(run)
    assert [record["step"] for record in records] == [1, 2, 3, 3]
    captions, text = source_totals(config.load(run / "config.json"), records)
    assert captions.counts == {"sequences": 12, "tokens": 200, "images": 24}
    assert (captions.requested, captions.shares["sequences"], captions.shares["tokens"]) == (0.75, 0.75, 0.25)
    assert text.counts == {"sequences": 4, "tokens": 600, "images": 0}


def test_the_mix_page_shows_requested_and_real_shares(tmp_path: Path):
    page = Page(mix_page(a_run(tmp_path / "main")))
    assert "2 of 4 steps are done" in page.text
    assert "0\N{EN DASH}3 captions 75.0 % 75.0 % 25.0 % 100.0 %" in page.text
    assert "0\N{EN DASH}3 text 25.0 % 25.0 % 75.0 % 0.0 %" in page.text
    assert sum(tag == "svg" for tag, _ in page.tags) == 3


@pytest.mark.parametrize(
    ("gain", "difference", "helped", "looks"),
    [
        (5.0, 5.0, "Examples in the prompt help.", "The model looks at the picture."),
        (-5.0, 1.0, "Examples in the prompt do harm.", "That the model looks at the picture is not shown."),
        (
            1.0,
            -5.0,
            "Whether examples in the prompt help is not shown.",
            "That the model looks at the picture is not shown.",
        ),
    ],
)
def test_claims_follow_the_intervals(gain: float, difference: float, helped: str, looks: str):
    cells = [cell(0, difference=difference), cell(8, difference=difference, gain=gain)]
    verdicts = {one.verdict: one.shown for one in findings(Results(cells))}
    for claim in (helped, looks):
        assert verdicts[claim] == ("not shown" not in claim)
    mixed = [cell(0, difference=1.0), cell(8, difference=9.0, gain=0.0)]
    expected = "The model looks at the picture at 8 shots; elsewhere that is not shown."
    assert expected in [one.verdict for one in findings(Results(mixed))]


def test_protocols_are_told_apart_and_what_has_no_score_is_left_out():
    of_protocols = [cell(0, difference=1.0), dataclasses.replace(cell(0, difference=1.0), protocol="mm1")]
    assert {one.task for one in findings(Results(of_protocols))} == {"captions", "captions mm1"}
    nothing = Interval(math.nan, math.nan, math.nan)
    unread = dataclasses.replace(cell(8, difference=1.0), score=nothing, gain=nothing)
    assert not findings(Results([unread]))


def test_the_opening_holds_short_texts_and_pictures_only(tmp_path: Path):
    run = a_run(tmp_path / "main")
    add_scores(run)
    path = run / "eval" / "captions-4shot.jsonl"
    path.write_text(path.read_text().replace("<script>no</script>", "so " * 900))
    opening = report(run).read_text().partition("<section")[0]
    assert opening.count("so so") < 100
    path.write_text(path.read_text().replace('"query": "', '"query": "gone '))
    opening = report(run).read_text().partition("<section")[0]
    assert "Green:" not in opening


def test_a_score_is_above_guessing_only_when_its_interval_is():
    sure, unsure = cell(0, difference=0.0, score=15.0), cell(0, difference=0.0, score=13.0)
    assert "The model is above guessing." in [one.verdict for one in findings(Results([sure]))]
    assert "That the model is above guessing is not shown." in [one.verdict for one in findings(Results([unsure]))]


@pytest.fixture
def packed(stores: dict[str, Path]) -> tuple[Batch, Sequences]:
    data = DataConfig(sources={"interleaved": SourceConfig(store=str(stores["interleaved"]))}, sequence_length=384)
    sequences = Sequences(data, tile=TileSpec(24, 4), seed=0, batch_size=12)
    candidates = (sequences.batch([n]) for n in range(sequences.sources[0].plan.epoch_sequences))
    batch = next(batch for batch in candidates if not batch.document_BT[0, -1])  # one that is not full
    assert int(batch.document_BT.max()) >= 3
    return batch, sequences


def test_the_checks_of_a_packed_sequence_pass(packed: tuple[Batch, Sequences]):
    batch, sequences = packed
    assert [check.claim for check in checks(batch, sequences.tokenizer.image) if not check.passed] == []
    source = sequence_page(batch, sequences.tokenizer, sources=sequences.names)
    page = Page(source)
    assert "FAIL" not in page.text
    pictures = [named for tag, named in page.tags if tag == "img" and named["alt"] == "image"]
    assert len(pictures) == batch.images
    trained = [named for _, named in page.tags if "trained" in (named.get("class") or "").split()]
    assert len(trained) == int((batch.targets_BT >= 0).sum())
    assert all(address.startswith("data:") for address in page.addresses)


def spoil(batch: Batch, what: str) -> None:
    """Break one property of a correct sequence."""
    second = int((batch.document_BT[0] == 1).sum())
    padding = int((batch.document_BT[0] > 0).sum())
    trained = int((batch.targets_BT[0] >= 0).nonzero()[0])
    if what == "merged":
        batch.document_BT[0, batch.document_BT[0] == 2] = 1
    elif what == "split":
        batch.document_BT[0, second // 2 : second] = 99
    elif what == "shifted":
        batch.targets_BT[0, trained] += 1
    elif what == "crossing":
        batch.targets_BT[0, second - 1] = batch.tokens_BT[0, second]
    elif what == "padding":
        batch.targets_BT[0, padding] = 7
    elif what == "image":
        batch.images += 1


@pytest.mark.parametrize(
    ("what", "claim"),
    [
        ("merged", "no document sees another"),
        ("split", "every position sees its own document up to itself"),
        ("shifted", "every target is the next token of the same document"),
        ("crossing", "every target is the next token of the same document"),
        ("padding", "padding is neither seen nor trained"),
        ("image", "every image has its positions, inside one document"),
    ],
)
def test_a_broken_sequence_fails_its_check(packed: tuple[Batch, Sequences], what: str, claim: str):
    batch, sequences = packed
    spoil(batch, what)
    failed = [check.claim for check in checks(batch, sequences.tokenizer.image) if not check.passed]
    assert claim in failed


def test_a_page_shows_one_sequence(packed: tuple[Batch, Sequences]):
    batch, sequences = packed
    two = dataclasses.replace(batch, tokens_BT=torch.cat([batch.tokens_BT] * 2))
    with pytest.raises(ValueError, match="the batch has 2"):
        sequence_page(two, sequences.tokenizer, sources=sequences.names)


def test_a_document_page_shows_its_pieces():
    data, _ = picture(0, 0)
    pieces = (Image(data), Mark("user"), Text("What <is> it?", train=False), Text("a circle"), Image(b"broken"))
    page = Page(document_page(Document(pieces, id="d1", metadata={"licence": "CC0"})))
    assert "What <is> it?" in page.text
    assert "CC0" in page.text
    assert "unreadable image" in page.text
    trained = [named for tag, named in page.tags if tag == "span" and "trained" in named["class"]]
    assert len(trained) == 1


def test_the_pictures_hide_parts_that_the_pages_have():
    spec = importlib.util.spec_from_file_location("make_images", ROOT / "docs/make_images.py")
    make_images = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_images)
    for style, template in (
        (make_images.REPORT_STYLE, "page.html"),
        (make_images.SEQUENCE_STYLE, "sequence.html"),
    ):
        html = (ROOT / "mm1/report" / template).read_text()
        names = set(re.findall(r"\.([a-z][a-z-]*)", style))
        missing = {name for name in names if not re.search(rf'class="[^"]*\b{name}\b', html)}
        assert names
        assert not missing, f"{template} has no class {missing}"
