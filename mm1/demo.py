"""All of MM1 at a small scale: four trainings, few-shot and fine-tuned scores, a report, answers about pictures."""

import io
import time
from pathlib import Path

from PIL import Image as Pillow
from rich.rule import Rule

from mm1.checkpoint import Loaded, load_for_use
from mm1.config.run import RunConfig
from mm1.config.sample import SAMPLE
from mm1.data.chat_format import prompt
from mm1.data.store import open_store
from mm1.document import Document, Text
from mm1.eval.harness import evaluate_run
from mm1.eval.results import Results, read_answers, score_name, score_table
from mm1.recipes import tiny
from mm1.report.page import report
from mm1.serve.chat import continue_document
from mm1.train.log import console
from mm1.train.run import train_run

CAPTIONS, QUESTIONS = 400, 600
"""How many held-out queries are scored."""


def run_demo(folder: Path, *, seed: int = 0) -> Path:
    """The path of the report, after running or continuing the demo in `folder`.

    Every stage is an ordinary run in a folder of its own: `mm1 show`, `chat`, `eval` and `report` work on each. `seed`
    is that of the trainings; all seeds are asked the same.
    """
    started = time.monotonic()
    root = str(folder)

    def train(run: RunConfig) -> Path:
        run.seed = seed
        return train_run(run, folder / run.recipe)

    _print_data()
    _print_heading("1/5  image encoder: which caption belongs to which picture")
    train(tiny.tiny_encoder())
    _print_heading("2/5  language model: text alone")
    train(tiny.tiny_language())
    _print_heading("3/5  multimodal: captions, pages and text, nothing frozen")
    multimodal = train(tiny.tiny(root))
    _print_heading("4/5  few-shot answers, each also with another picture instead of its own (blind)")
    pretrained = load_for_use(multimodal)
    evaluate_run(pretrained, tasks=["languages"], shots=(0, 8), limit=CAPTIONS, seed=0)
    few_shot = evaluate_run(pretrained, tasks=["captions"], shots=(0, 4, 8), limit=CAPTIONS, seed=0)
    _print_heading("5/5  fine-tuning on questions about pictures")
    tuned_folder = train(tiny.tiny_sft(root))
    tuned = load_for_use(tuned_folder)
    answers = evaluate_run(tuned, tasks=["easy_vqa"], shots=(0,), limit=QUESTIONS, seed=0)
    page = report(multimodal, others=[folder / "tiny_encoder", folder / "tiny_language", tuned_folder])
    _print_heading("Results")
    console.print(score_table(few_shot, width=console.width))
    console.print(score_table(answers, width=console.width))
    _print_answers(pretrained, tuned)
    _print_languages(multimodal / "eval", few_shot)
    _print_next(multimodal, tuned_folder, picture=_first_picture(folder))
    console.print(f"{(time.monotonic() - started) / 60:.1f} minutes; report: {page}", highlight=False)
    return page


def _print_data() -> None:
    """What the sample's training stores hold."""
    stores = {
        "captioned pictures": "captions-train",
        "pages with pictures": "interleaved-train",
        "pages of pictures with labels in one of three languages": "languages-train",
        "texts": "text-train",
        "pictures with questions": "vqa-train",
    }
    counts = ", ".join(f"{len(open_store(f'sample:{store}')):,} {what}" for what, store in stores.items())
    console.print(f"Data: {counts}. {SAMPLE / 'card.json'} has their sources and licences.", highlight=False)


def _print_answers(pretrained: Loaded, tuned: Loaded) -> None:
    """Ask about the first picture of two held-out stores, whatever it shows."""
    captioned = open_store("sample:captions-test").take([0])[0]
    text = continue_document(pretrained, Document((captioned.images[0], Text(" A photo of"))), tokens=24)
    first_line = text.partition("\n")[0]
    console.print(
        f"Picture {captioned.id}: a photo of {first_line!r} (right: {captioned.text.strip()!r})", highlight=False
    )
    chat = open_store("sample:vqa-test").take([0])[0]
    question, reference = [piece for piece in chat.pieces if isinstance(piece, Text)][:2]
    answer = continue_document(tuned, prompt([chat.images[0], question]), tokens=8)
    console.print(f"Picture {chat.id}: {question.text} {answer!r} (right: {reference.text!r})", highlight=False)


def _print_languages(folder: Path, results: Results) -> None:
    """The best and the first answer after eight shots of each language, each beside the answer without shots."""
    scores = {score.name: score for score in results.scores}
    without, after = (
        {answer.query: answer for answer in read_answers(folder, scores[score_name("languages", shots, protocol="")])}
        for shots in (0, 8)
    )
    for language in sorted({query.split("/")[1] for query in after}):
        names = [query for query in after if f"/{language}/" in query]
        best = max(names, key=lambda name: after[name].score or 0.0)
        for which, name in (("best", best), ("first", names[0])):
            console.print(
                f"Label in {language}, {which} of {len(names)}: “{after[name].text}” after eight shots, "
                f"“{without[name].text}” after none (right: “{after[name].references[0]}”)",
                highlight=False,
            )


def _first_picture(folder: Path) -> Path:
    """The first held-out picture with questions, as a file in `folder`."""
    picture = folder / "picture.png"
    (chat,) = open_store("sample:vqa-test").take([0])
    Pillow.open(io.BytesIO(chat.images[0].data)).save(picture)
    return picture


def _print_next(pretrained: Path, tuned: Path, *, picture: Path) -> None:
    """What to try with the trained runs."""
    console.print("Next:")
    for command in (
        f'mm1 chat {tuned} --image {picture} "is there a circle?"',
        f"mm1 eval {pretrained} --tasks languages --shots 0,1,2,4,8",
        f"mm1 show {pretrained} --sequence 42",
        f"mm1 serve {tuned}",
    ):
        console.print(f"  {command}", highlight=False, soft_wrap=True)


def _print_heading(line: str) -> None:
    console.print(Rule(f"[bold]{line}", align="left"))
