"""All of MM1 at a small scale: four trainings, two evaluations, a report, two answers about pictures."""

import io
import time
from pathlib import Path

from PIL import Image as Pillow
from rich.rule import Rule

from mm1.checkpoint import Loaded, load_for_use
from mm1.data.chat_format import prompt
from mm1.data.store import open_store
from mm1.document import Document, Text
from mm1.eval.harness import evaluate_run
from mm1.eval.results import score_table
from mm1.recipes import tiny
from mm1.report.page import report
from mm1.serve.chat import continue_document
from mm1.train.log import console
from mm1.train.run import train_run

CAPTIONS, QUESTIONS = 400, 600
"""How many held-out queries are scored."""


def run_demo(folder: Path) -> Path:
    """The path of the report, after running or continuing the demo in `folder`.

    Every stage is an ordinary run in a folder of its own: `mm1 show`, `chat`, `eval` and `report` work on each.
    """
    started = time.monotonic()
    root = str(folder)
    _print_heading("1/5  image encoder: which caption belongs to which picture")
    train_run(tiny.tiny_encoder(), folder / "tiny_encoder")
    _print_heading("2/5  language model: text alone")
    train_run(tiny.tiny_language(), folder / "tiny_language")
    _print_heading("3/5  multimodal: captions, pages and text, nothing frozen")
    multimodal = train_run(tiny.tiny(root), folder / "tiny")
    _print_heading("4/5  few-shot captions, each also with another picture instead of its own (blind)")
    pretrained = load_for_use(multimodal)
    captions = evaluate_run(pretrained, tasks=["captions"], shots=(0, 4, 8), limit=CAPTIONS, seed=0)
    _print_heading("5/5  fine-tuning on questions about pictures")
    tuned_folder = train_run(tiny.tiny_sft(root), folder / "tiny_sft")
    tuned = load_for_use(tuned_folder)
    answers = evaluate_run(tuned, tasks=["easy_vqa"], shots=(0,), limit=QUESTIONS, seed=0)
    page = report(multimodal, others=[folder / "tiny_encoder", folder / "tiny_language", tuned_folder])
    _print_heading("Results")
    console.print(score_table(captions, width=console.width))
    console.print(score_table(answers, width=console.width))
    _print_two_answers(pretrained, tuned, folder)
    console.print(f"{(time.monotonic() - started) / 60:.1f} minutes; report: {page}", highlight=False)
    return page


def _print_two_answers(pretrained: Loaded, tuned: Loaded, folder: Path) -> None:
    """Ask about the first picture of two held-out stores, whatever it shows; leave the second one in `folder`."""
    captioned = open_store("sample:captions-test").take([0])[0]
    text = continue_document(pretrained, Document((captioned.images[0], Text(" A photo of"))), tokens=24)
    first_line = text.partition("\n")[0]
    console.print(
        f"Picture {captioned.id}: a photo of {first_line!r} (its caption: {captioned.text.strip()!r})", highlight=False
    )
    chat = open_store("sample:vqa-test").take([0])[0]
    question, reference = [piece for piece in chat.pieces if isinstance(piece, Text)][:2]
    answer = continue_document(tuned, prompt([chat.images[0], question]), tokens=8)
    console.print(f"Picture {chat.id}: {question.text} {answer!r} (right: {reference.text!r})", highlight=False)
    picture = folder / "picture.png"
    Pillow.open(io.BytesIO(chat.images[0].data)).save(picture)
    command = f'mm1 chat {tuned.folder} --image {picture} "{question.text}"'
    console.print(f"Ask another question: {command}", highlight=False, soft_wrap=True)


def _print_heading(line: str) -> None:
    console.print(Rule(f"[bold]{line}", align="left"))
