"""Chats as people have them, from the file to the batch: what is trained, what is shown, what is left out and why."""

import io
import json
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small
import torch
from PIL import Image as Canvas
from test_hostile import png_that_claims
from test_training_chats import noise

from mm1.config.model import TilingConfig
from mm1.config.run import RunConfig, SourceConfig
from mm1.data.loader import sequences_of
from mm1.data.store import Store, write_store
from mm1.data.tokenizer import load_tokenizer
from mm1.document import IGNORED, Document, Image, Text
from mm1.prepare.pipeline import prepare
from mm1.prepare.request import parse_request
from mm1.prepare.shard import ReadOptions
from mm1.report.sequence import store_document_page
from tests.reading import drops, read

PRESETS = get_args(TilingConfig.model_fields["kind"].annotation)
CHATS = {
    "several turns": (
        ["0.png"],
        [("human", "<image>\nWhat is this?"), ("gpt", "Noise."), ("human", "Grey?"), ("gpt", "All grey.")],
    ),
    "several pictures": (
        ["0.png", "1.png"],
        [("human", "Compare <image> with <image>."), ("gpt", "Both are noise.")],
    ),
    "text alone": ([], [("human", "Hello?"), ("gpt", "Good morning.")]),
    "a system prompt": (
        ["2.png"],
        [("system", "Be brief."), ("human", "<image>\nWhat is this?"), ("gpt", "Grain.")],
    ),
}
ANSWERS = {"Noise.", "All grey.", "Both are noise.", "Good morning.", "Grain."}


def write_chats(folder: Path, chats: dict) -> Path:
    for number in range(3):
        (folder / f"{number}.png").write_bytes(noise(str(number)))
    path = folder / "talk.json"
    elements = [
        {"id": name, "image": images, "conversations": [{"from": who, "value": text} for who, text in turns]}
        for name, (images, turns) in chats.items()
    ]
    path.write_text(json.dumps(elements))
    return path


def run_over(*stores: Path, images: int = 8, tiling: str = "none", length: int = 256) -> RunConfig:
    run = small.run({"captions": stores[0], "text": stores[0]})
    run.data.sources = {path.stem: SourceConfig(store=str(path)) for path in stores}
    run.data.max_images, run.data.sequence_length = images, length
    run.model.tiling = TilingConfig(kind=tiling)
    return run


def trained_texts(run: RunConfig, folder: Path) -> list[str]:
    """The texts that an epoch trains, one for each stretch of trained tokens."""
    sequences, tokenizer = sequences_of(run, folder), load_tokenizer(run.data.tokenizer)
    count = sum(source.plan.epoch_sequences for source in sequences.sources) * 2
    texts = []
    for number in range(count):
        targets = sequences.batch([number]).targets_BT[0]
        edges = torch.diff((targets != IGNORED).int(), prepend=torch.zeros(1, dtype=torch.int32)).nonzero().squeeze(1)
        stretches = [part for part in torch.tensor_split(targets, edges) if len(part) and part[0] != IGNORED]
        texts += [tokenizer.decode([token for token in part.tolist() if token != IGNORED]) for part in stretches]
    return texts


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    prepare(parse_request([str(write_chats(folder, CHATS))]), folder / "to")
    return folder / "to"


def test_one_file_holds_chats_of_every_form_and_their_answers_alone_are_trained(prepared: Path, tmp_path: Path):
    texts = trained_texts(run_over(prepared / "images.lance", prepared / "text.lance"), tmp_path)
    assert {text.replace("<|end|>", "").strip() for text in texts} == ANSWERS


def test_a_row_is_shown_as_it_is_trained(prepared: Path):
    shown = set()
    for name in ("images", "text"):
        store = prepared / f"{name}.lance"
        for row, document in enumerate(Store(store).scan()):
            page = store_document_page(str(store), row)
            trained = set(re.findall(r'class="token trained"[^>]*>([^<]*)<', page))
            assert trained == {piece.text for piece in document.pieces if isinstance(piece, Text) and piece.train}
            assert page.count("<img ") == len(document.images)
            shown |= trained
    assert shown == ANSWERS


ODD_CHATS = {
    "a tag without its picture": ([], "<image>\nWhat?", "more or fewer pictures than <image> marks"),
    "a picture more than tags": (["0.png", "1.png"], "<image>\nWhat?", "more or fewer pictures than <image> marks"),
    "a picture that is not there": (["9.png"], "<image>\nWhat?", "picture that is missing"),
    "two hundred pictures": (["0.png"] * 200, "<image>" * 200, "picture after the 30th of a document"),
}


@pytest.mark.parametrize("name", ODD_CHATS)
def test_a_chat_whose_pictures_are_not_those_of_its_text_is_left_out_by_name(name: str, tmp_path: Path):
    images, question, reason = ODD_CHATS[name]
    odd = {name: (images, [("human", question), ("gpt", "Nothing.")])}
    prepare(parse_request([str(write_chats(tmp_path, CHATS | odd))]), tmp_path / "to")
    card = json.loads((tmp_path / "to/card.json").read_text())
    kept = {document.id.partition("/")[2] for document in Store(tmp_path / "to/images.lance").scan()}
    assert name not in kept
    assert card["records"]["read"] == len(CHATS) + 1
    assert card["records"]["kept"] == len(CHATS)
    assert reason in " ".join([*card["records"]["dropped"], *card["pictures"]["dropped"]])


def test_a_picture_without_any_tag_stands_before_the_question(tmp_path: Path):
    chats = {"untagged": (["0.png"], [("human", "What?"), ("gpt", "Noise.")])}
    prepare(parse_request([str(write_chats(tmp_path, chats))]), tmp_path / "to")
    (document,) = Store(tmp_path / "to/images.lance").scan()
    assert [type(piece) for piece in document.pieces] == [Image, Text, Text]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_chat_of_more_pictures_than_a_sequence_holds_is_left_out_and_counted(preset: str, tmp_path: Path):
    """No answer is trained with some of the pictures that it is about."""
    pieces = [Image(noise("0")) for _ in range(200)]
    chats = {"long": (*pieces, Text("What?", train=False), Text("Many.")), "short": (Text("One."),)}
    chats["later"] = (pieces[0], Text("This?", train=False), Text("Noise."), *chats["long"])
    documents = [Document(chat, id=name, metadata={"form": "chat"}) for name, chat in chats.items()]
    write_store(documents, tmp_path / "chats.lance")
    run = run_over(tmp_path / "chats.lance", images=20, tiling=preset, length=1024)
    sequences = sequences_of(run, tmp_path)
    trained = {text.replace("<|end|>", "").strip() for text in trained_texts(run, tmp_path)}
    assert trained == {"One.", "Noise."}  # of a longer chat what comes before it is too long
    batch = sequences.batch([0])
    assert 0 < batch.images <= 20
    assert batch.broken == ()
    assert sequences.sources[0].dropped == {
        "chats of more positions or pictures than a sequence holds before the first answer": 1,
        "ends of chats of more positions or pictures than a sequence holds": 1,
    }


def encoded(picture: Canvas.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


FRAMES = [Canvas.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
ODD_PICTURES = {
    "1 x 1": (encoded(Canvas.new("RGB", (1, 1))), "picture of fewer than 32 pixels"),
    "1 x 10,000": (encoded(Canvas.new("RGB", (1, 10_000))), "picture of fewer than 32 pixels"),
    "40 x 10,000": (encoded(Canvas.new("RGB", (40, 10_000))), "picture longer than 12 to 1"),
    "20,000 x 20,000": (png_that_claims(20_000, 20_000), "picture with too many pixels"),
    "animated": (encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), ""),
    "16 bits": (encoded(Canvas.fromarray(np.full((48, 64), 0x8000, np.uint16))), ""),
}


@pytest.mark.parametrize("name", ODD_PICTURES)
def test_an_odd_picture_is_kept_or_left_out_by_name(name: str, tmp_path: Path):
    data, reason = ODD_PICTURES[name]
    (tmp_path / "odd.png").write_bytes(data)
    odd = {"odd": (["odd.png"], [("human", "<image>\nWhat?"), ("gpt", "Something odd.")])}
    prepare(parse_request([str(write_chats(tmp_path, CHATS | odd))]), tmp_path / "to")
    card = json.loads((tmp_path / "to/card.json").read_text())
    assert card["pictures"]["dropped"].get(reason, 0) == (reason != "")
    assert card["records"]["kept"] == len(CHATS) + (reason == "")


TOO_LARGE = {"7,000 x 6,000": (7000, 6000), "20,000 x 20,000": (20_000, 20_000)}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_picture_that_is_too_large_has_its_size_and_the_limit(name: str, tmp_path: Path):
    (tmp_path / "odd.png").write_bytes(png_that_claims(*TOO_LARGE[name]))
    odd = {"odd": (["odd.png"], [("human", "<image>\nWhat?"), ("gpt", "Something odd.")])}
    examples = examples_of(write_chats(tmp_path, CHATS | odd), tmp_path / "to")
    details = [one["detail"] for one in examples if one["reason"] == "picture with too many pixels"]
    assert set(details) == {f"{name} pixels; at most 40,000,000 are decoded"}


def test_what_was_left_out_is_the_same_in_every_run(tmp_path: Path):
    (tmp_path / "odd.png").write_bytes(b"no picture")
    path = write_chats(tmp_path, CHATS | {"odd": (["odd.png"], [("human", "<image>\nWhat?"), ("gpt", "Odd.")])})
    examples = [examples_of(path, tmp_path / f"to{n}") for n in range(2)]
    assert examples[0] == examples[1]
    assert "no picture of a known kind" in {one["detail"] for one in examples[0]}


def test_a_position_counts_from_0_in_an_array_and_in_lines_from_1(tmp_path: Path):
    odd = {"odd": (["gone.png"], [("human", "<image>\nWhat?"), ("gpt", "Odd.")])}
    path = write_chats(tmp_path, CHATS | odd)
    number = len(CHATS)
    assert {one["position"] for one in examples_of(path, tmp_path / "array")} == {f"element {number}"}
    lines = path.with_suffix(".jsonl")
    lines.write_text("\n".join(json.dumps(entry) for entry in json.loads(path.read_text())))
    assert {one["position"] for one in examples_of(lines, tmp_path / "lines")} == {f"line {number + 1}"}


def test_chats_of_sharegpt_as_first_published_are_read(tmp_path: Path):
    entries = [
        {
            "id": str(n),
            "items": [{"from": "human", "value": f"Who are you {n}?"}, {"from": who, "value": f"I am {who}."}],
        }
        for n, who in enumerate(("gpt", "chatgpt", "bard", "bing"))
    ]
    (tmp_path / "talk.json").write_text(json.dumps(entries))
    prepare(parse_request([str(tmp_path / "talk.json"), "copies=none"]), tmp_path / "to")
    trained = [text.text for one in Store(tmp_path / "to/text.lance").scan() for text in one.pieces if text.train]
    assert trained == ["I am gpt.", "I am chatgpt.", "I am bard.", "I am bing."]


def test_chats_with_calls_of_tools_are_counted_by_name(tmp_path: Path):
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "What is six times seven?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "x"},
        {"role": "assistant", "content": "It is 42."},
    ]
    plain = [turns[0], turns[3]]
    (tmp_path / "talk.json").write_text(json.dumps([{"messages": turns}, {"messages": turns[:2]}, {"messages": plain}]))
    result = prepare(parse_request([str(tmp_path / "talk.json")]), tmp_path / "to")
    assert result.ledger.records.dropped == {"conversation with calls of tools, which are not read": 2}


def examples_of(path: Path, to: Path) -> list[dict]:
    """What `dropped.jsonl` has of a preparation of these chats."""
    prepare(parse_request([str(path)]), to)
    return [json.loads(line) for line in (to / "dropped.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("preset", PRESETS)
def test_odd_pictures_of_a_store_are_trained_or_counted_with_every_tiling(preset: str, tmp_path: Path):
    write_store(
        (
            Document((Image(data), Text("What?", train=False), Text(f"{name}.")), id=name, metadata={"form": "chat"})
            for name, (data, _) in ODD_PICTURES.items()
        ),
        tmp_path / "odd.lance",
    )
    run = run_over(tmp_path / "odd.lance", images=64, tiling=preset, length=1024)
    sequences = sequences_of(run, tmp_path)
    numbers = range(sequences.sources[0].plan.epoch_sequences)
    batches = [sequences.batch([number]) for number in numbers]
    assert sequences.sources[0].dropped == {}
    broken = {re.match(r"odd: (.*), image 0: ", text)[1] for batch in batches for text in batch.broken}
    assert broken == {"20,000 x 20,000"}
    assert sum(int(batch.document_BT.max()) for batch in batches) == len(ODD_PICTURES)


ALPACA = [
    {"instruction": "Add the numbers.", "input": "2 and 3", "output": "5"},
    {"instruction": "Name a river.", "input": "", "output": "The Rhine.", "system": "Be brief."},
    {"instruction": "And a lake?", "output": "Como.", "history": [["Name a river.", "The Po."]], "images": ["0.png"]},
    {"instruction": "Who wrote it?", "context": 7, "response": "Ann did."},
    {"instruction": "Name no one.", "input": "", "output": None},
]


def parquet(rows: list[dict]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def said(documents: list[Document]) -> list[list[tuple[str, bool]]]:
    return [[(piece.text, piece.train) for piece in d.pieces if isinstance(piece, Text)] for d in documents]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.parquet"])
def test_instructions_with_their_answers_are_read_as_chats(tmp_path, name):
    """Alpaca's layout, with LLaMA-Factory's further fields, and Dolly's."""
    columns = dict.fromkeys(name for row in ALPACA[:3] for name in row)
    rows = [columns | row for row in ALPACA[:3]] if name.endswith("parquet") else ALPACA
    content = {"a.json": json.dumps(rows, indent=1).encode(), "a.jsonl": lines(rows), "a.parquet": parquet(rows)}[name]
    (tmp_path / name).write_bytes(content)
    (tmp_path / "0.png").write_bytes(noise("0"))
    documents, ledger = read(tmp_path / name)
    assert all(document.metadata["form"] == "chat" for document in documents)
    expected = [
        [("Add the numbers.\n2 and 3", False), ("5", True)],
        [("Be brief.\n", False), ("Name a river.", False), ("The Rhine.", True)],
        [("Name a river.", False), ("The Po.", True), ("And a lake?", False), ("Como.", True)],
        [("Who wrote it?\n7", False), ("Ann did.", True)],
    ]
    assert said(documents) == expected[: len(rows)]
    assert len(documents[2].images) == 1
    assert drops(ledger) == ({"conversation without an answer": 1} if len(rows) == 5 else {})


FORMS = {"a.jsonl": lines, "a.parquet": parquet}
UNFILLED = {
    "another name's answer": {"instruction": "What?", "output": None, "response": "A cat."},
    "no instruction, but an input": {"instruction": None, "input": "What?", "output": "A cat."},
    "an empty instruction": {"instruction": "", "input": "What?", "output": "A cat."},
    "an empty input": {"instruction": "What?", "input": " ", "context": None, "output": "A cat."},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", UNFILLED)
def test_instructions_are_made_of_the_fields_that_are_filled(tmp_path, name, form):
    (tmp_path / form).write_bytes(FORMS[form]([UNFILLED[name]]))
    documents, ledger = read(tmp_path / form)
    assert said(documents) == [[("What?", False), ("A cat.", True)]]
    assert not drops(ledger)


@pytest.mark.parametrize("form", FORMS)
def test_a_row_without_an_instruction_is_read_as_its_text(tmp_path, form):
    """A formatted prompt, as Alpaca has it in the column text, is no text of its own beside its instruction."""
    rows = [
        {"text": "A page.", "instruction": "", "response": ""},
        {"text": "Prompt: what? A cat.", "instruction": "What?", "response": "A cat."},
        {"text": "Another page.", "instruction": None, "response": None},
        {"text": "Prompt: who?", "instruction": "Who?", "response": None},
        {"text": "", "instruction": "", "response": ""},
    ]
    (tmp_path / form).write_bytes(FORMS[form](rows))
    documents, ledger = read(tmp_path / form)
    assert said(documents) == [[("A page.", True)], [("What?", False), ("A cat.", True)], [("Another page.", True)]]
    assert drops(ledger) == {"conversation without an answer": 1, "row without a text": 1}


@pytest.mark.parametrize("form", FORMS)
def test_a_column_that_the_user_names_as_text_is_read_as_text(tmp_path, form):
    (tmp_path / form).write_bytes(FORMS[form]([{"instruction": "What?", "output": "A cat."}]))
    documents, _ = read(tmp_path / form, options=ReadOptions(columns={"text": "output"}))
    assert said(documents) == [[("A cat.", True)]]


QUESTION, EMPTY = {"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": " "}
UNANSWERED = {
    "llava": {"conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": ""}]},
    "openai": {"messages": [QUESTION]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "What?"}]}, EMPTY]},
    "picture for an answer": {"messages": [QUESTION | {"content": "Draw."}, EMPTY | {"content": "<image>"}]},
    "alpaca": {"instruction": "Name no one.", "input": "", "output": ""},
    "finevision": {"texts": [{"user": "What?", "assistant": ""}]},
}


@pytest.mark.parametrize("name", UNANSWERED)
def test_a_chat_without_an_answer_is_left_out_by_name(name: str, tmp_path: Path):
    record = UNANSWERED[name]
    if "texts" in record:
        (tmp_path / "a.parquet").write_bytes(parquet([record | {"images": [{"bytes": noise("0"), "path": None}]}]))
    else:
        (tmp_path / "0.png").write_bytes(noise("0"))
        (tmp_path / "a.json").write_text(json.dumps([record | {"images": ["0.png"]}]))
    documents, ledger = read(tmp_path)
    assert documents == []
    assert drops(ledger) == {"conversation without an answer": 1}
    assert ledger.pictures.read == ledger.pictures.dropped.total() == 1


def test_a_chat_that_ends_with_a_question_keeps_its_answers(tmp_path: Path):
    turns = [("human", "Hello?"), ("gpt", "Good morning."), ("human", "And now?")]
    documents, _ = read(write_chats(tmp_path, {"open": ([], turns)}))
    assert [piece.text for piece in documents[0].pieces if piece.train] == ["Good morning."]


def test_a_stored_chat_without_an_answer_is_not_trained(tmp_path: Path):
    answered = Document((Text("Hello?", train=False), Text("Good morning.")), id="0", metadata={"form": "chat"})
    unanswered = Document((Text("Is anybody there?", train=False),), id="1", metadata={"form": "chat"})
    write_store([answered, unanswered], tmp_path / "chats.lance")
    run = run_over(tmp_path / "chats.lance")
    assert {text.replace("<|end|>", "").strip() for text in trained_texts(run, tmp_path)} == {"Good morning."}
    assert sequences_of(run, tmp_path).sources[0].dropped == {"nothing to learn (empty text)": 1}
