"""Chats of a task's training split: asked as evaluation asks, without what evaluation shows, nothing lost unsaid."""

import io
import json
import pickle
from pathlib import Path

import layouts
import numpy as np
import pytest
from PIL import Image as Canvas

from mm1.config.sample import SAMPLE
from mm1.data.encode import encode
from mm1.data.store import Store, write_store
from mm1.data.tiles import TileSpec
from mm1.data.tokenizer import load_tokenizer
from mm1.document import Document, Image, Text
from mm1.eval import fewshot
from mm1.eval.index import find_task
from mm1.eval.training_chats import MOST_TURNS, TrainingChats
from mm1.prepare.pipeline import prepare
from mm1.prepare.request import parse_request
from mm1.prepare.shard import InputError
from mm1.recipes.index import recipe
from mm1.recipes.sft import SETS

TRAINED = [name for name in layouts.FILES if find_task(name).source.training or "train" in find_task(name).source.shots]


def noise(name: str) -> bytes:
    """A picture that looks like no other, as a PNG."""
    coarse = np.random.default_rng(list(name.encode())).integers(0, 256, (8, 8), np.uint8)
    file = io.BytesIO()
    Canvas.fromarray(coarse).resize((64, 64), Canvas.Resampling.BICUBIC).convert("RGB").save(file, "PNG")
    return file.getvalue()


def make(name: str, folder: Path) -> Path:
    """The data set in miniature, as first released, with pictures that differ."""
    layouts.FILES[name](folder)
    for path in folder.rglob("*"):
        if path.suffix in (".jpg", ".jpeg", ".png"):
            path.write_bytes(noise(path.relative_to(folder).as_posix()))
    return folder


def chats(name: str, data: Path, to: Path) -> list[Document]:
    prepare(parse_request([f"task:{name}", f"data={data}"]), to, chats_of=TrainingChats)
    return list(Store(to / "images.lance").scan())


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_split_becomes_chats_that_are_asked_as_in_evaluation(name: str, tmp_path: Path):
    folder = make(name, tmp_path / "data")
    documents = chats(name, folder, tmp_path / "to")
    task = find_task(name)(100, seed=0, data=str(folder), form="chat")
    examples = {f"{name}/{example.id}": example for example in task.pool.read(list(range(task.pool.count)))}
    tokenizer, tile = load_tokenizer("sample"), TileSpec(tokens=4, size=32)
    assert documents
    for document in documents:
        example = examples[document.id]
        prompt = encode(fewshot.prompt(task, example, shots=[]), tokenizer, tile=tile, end=False)
        whole = encode(document, tokenizer, tile=tile)
        length = len(prompt.tokens)
        assert whole.tokens[:length].tolist() == prompt.tokens.tolist()
        assert not whole.train[:length].any()
        assert whole.train[length]
        answers = [piece.text for piece in document.pieces if isinstance(piece, Text) and piece.train]
        assert answers[0] == example.answers[0].strip()
    assert not {query.image for query in task.queries} & {image for document in documents for image in document.images}


def test_letters_are_drawn_where_a_question_of_ai2d_speaks_of_them(tmp_path: Path):
    folder = make("ai2d", tmp_path / "data")
    lettered = find_task("ai2d").split_readers(str(folder))[0].examples([1])[0]
    picture = np.asarray(Canvas.open(io.BytesIO(lettered.image.data)).convert("L"))
    plain = np.asarray(Canvas.open(folder / "images/0.png").convert("L"))
    box = np.zeros(picture.shape, bool)
    box[4:15, 4:21] = True
    assert (picture[~box] == plain[~box]).all()
    assert (picture[box] == 255).any()
    assert (picture[box] < 100).any()
    assert lettered.question == "What is A?"


def test_questions_about_one_picture_are_turns_of_one_chat(tmp_path: Path):
    folder = make("vqav2", tmp_path / "data")
    for part in ("questions", "annotations"):
        prefix = "v2_OpenEnded_mscoco" if part == "questions" else "v2_mscoco"
        path = folder / f"{prefix}_train2014_{part}.json"
        content = json.loads(path.read_text())
        first = content[part][0]
        content[part] += [first | {"question_id": 1000 + n, "question": f"What is {n}?"} for n in range(MOST_TURNS)]
        path.write_text(json.dumps(content))
    documents = chats("vqav2", folder, tmp_path / "to")
    turns = [sum(isinstance(piece, Text) and piece.train for piece in document.pieces) for document in documents]
    assert turns == [MOST_TURNS, 1, 1, 1, 1, 1, 1]
    assert all(len(document.images) == 1 for document in documents)
    assert [type(piece) for piece in documents[0].pieces[:5]] == [Image, Text, Text, Text, Text]


def test_a_training_picture_that_evaluation_shows_is_left_out_and_counted(tmp_path: Path):
    folder = make("vqav2", tmp_path / "data")
    shown = sorted((folder / "val2014").iterdir())[2]
    leaked = sorted((folder / "train2014").iterdir())[4]
    leaked.write_bytes(shown.read_bytes())
    assert len(chats("vqav2", folder, tmp_path / "to")) == 5
    card = json.loads((tmp_path / "to/card.json").read_text())
    assert card["records"]["dropped"] == {"contaminated: shows a picture of an evaluation set": 1}


def test_a_question_that_cannot_be_asked_costs_itself(tmp_path: Path):
    folder = make("vqav2", tmp_path / "data")
    first, second, *_ = sorted((folder / "train2014").iterdir())
    first.unlink()
    second.write_bytes(b"no picture")
    assert len(chats("vqav2", folder, tmp_path / "to")) == 4
    card = json.loads((tmp_path / "to/card.json").read_text())
    assert card["records"]["dropped"] == {
        "question that its task cannot ask: no picture": 1,
        "question that its task cannot ask: unreadable picture": 1,
    }


def test_captions_of_coco_leave_out_the_pictures_of_its_validation(tmp_path: Path):
    folder = make("coco", tmp_path / "data")
    rows = {row["cocoid"]: row["split"] for row in json.loads((folder / "dataset_coco.json").read_text())["images"]}
    ids = [int(document.id.removeprefix("coco/")) for document in chats("coco", folder, tmp_path / "to")]
    assert {rows[number] for number in ids} == {"train"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task:pope", "data=."], "task pope has no training split"),
        (["task:easy_vqa", "data=."], "is of the shipped sample"),
        (["task:vqa2", "data=."], "no task 'vqa2'"),
        (["task:vqav2", "data=nowhere"], "no folder 'nowhere'"),
        (["task:vqav2", "data=."], "no split train in"),
        (["task:vqav2"], "data=FOLDER goes with task:NAME"),
    ],
)
def test_what_has_no_training_split_is_refused(words: list[str], message: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        prepare(parse_request(words), tmp_path / "to", chats_of=TrainingChats)
    assert not list(tmp_path.iterdir())


def test_data_without_an_evaluation_split_are_refused(tmp_path: Path):
    folder = make("vqav2", tmp_path / "data")
    (folder / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(ValueError, match="no split validation in"):
        chats("vqav2", folder, tmp_path / "to")
    with pytest.raises(InputError, match="data=FOLDER goes with"):
        prepare(parse_request([str(SAMPLE / "nothing.txt"), "data=."], kind="text"), tmp_path / "to")


def test_chats_travel_to_other_processes_as_two_names(tmp_path: Path):
    folder = make("gqa", tmp_path / "data")
    own = TrainingChats("gqa", str(folder))
    assert len(pickle.dumps(own)) < 300 + len(str(folder))
    assert len(pickle.loads(pickle.dumps(own))) == len(own) == 3


def chat_file(path: Path) -> None:
    """Two conversations in LLaVA's form, of which the second has no picture."""
    turns = [{"from": "human", "value": "Hello, what is new?"}, {"from": "gpt", "value": f"A file named {path.name}."}]
    shown = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "It is noise."}]
    path.write_text(
        json.dumps([{"id": "0", "image": "0.jpg", "conversations": shown}, {"id": "1", "conversations": turns}])
    )


@pytest.mark.parametrize("name", SETS)
def test_the_command_of_a_set_makes_its_store(name: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inputs = SETS[name].prepared.split()
    fields = dict(word.split("=") for word in inputs if "=" in word)
    if "text" in fields:
        (tmp_path / "text").mkdir()
        write_store([Document((Text("Words to write."),))], tmp_path / fields["text"])
        inputs = ["rendered_text", f"text={fields['text']}", "count=3", "page_side=96"]
    elif "data" in fields:
        make(inputs[0].removeprefix("task:"), tmp_path / fields["data"])
    else:
        chat_file(tmp_path / inputs[0])
    if "pictures" in fields:
        (tmp_path / fields["pictures"]).mkdir(parents=True)
        (tmp_path / fields["pictures"] / "0.jpg").write_bytes(noise(name))
    to = tmp_path / "sft" / name
    to.parent.mkdir()
    prepare(parse_request(inputs), to, chats_of=TrainingChats)
    store = recipe("mm1_3b_sft").data.sources[name].store
    assert next(Store(store).scan()).metadata["form"] == "chat"
