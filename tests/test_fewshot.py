"""Few-shot prompts and the harness: what a prompt holds, what it must not, and what is kept on disk."""

import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import captions, picture
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

from mm1.config.model import ConnectorConfig, DecoderConfig, ModelConfig, VisionConfig
from mm1.data.encode import encode
from mm1.data.image import load
from mm1.data.store import write_store
from mm1.data.tokenizer import MARKS, Tokenizer
from mm1.document import IGNORED, Batch, Document, Image, Mark, Text
from mm1.eval import fewshot
from mm1.eval.baselines import chance_answers, majority_answer
from mm1.eval.blind import exchange_images
from mm1.eval.fewshot import Example, Pool, PromptStyle, Scoring, Task
from mm1.eval.harness import evaluate, load_task
from mm1.eval.metrics.vqa import exact_match
from mm1.eval.models import Ours
from mm1.eval.results import read_answers, read_results, score_table
from mm1.eval.shots import Protocol, SimilarShots, draw_all
from mm1.eval.task_evaluation import Settings
from mm1.eval.tasks import captions as captions_task
from mm1.eval.tasks import easy_vqa, easy_vqa_plain, languages
from mm1.generate import writer
from mm1.generate.engine import Completion
from mm1.generate.writer import Writer
from mm1.model.mllm import MLLM
from mm1.tiling import TileSpec


def example(number: int, *, group: int | None = None) -> Example:
    data, label = picture(7, number if group is None else group)
    return Example(f"e{number}", Image(data + b"%d" % (number if group is None else group)), "What?", (label,))


def pool_of(count: int, *, first: int = 0, answers: list[str] | None = None) -> Pool:
    numbers = range(first, first + count)
    own_answers = [example(number).answers[0] for number in numbers]
    return Pool(count, lambda indices: [example(numbers[index]) for index in indices], answers or own_answers)


def a_task(*, pool: Pool | None = None, **style) -> Task:
    """Queries e0, e1, ...; the pool begins with the queries themselves."""
    default = PromptStyle(fewshot.ask_vqa, stops=fewshot.VQA_STOPS, clean=fewshot.clean_vqa)
    return Task(
        name="made",
        queries=[example(number) for number in range(6)],
        pool=pool or pool_of(12),
        style=dataclasses.replace(default, **style),
        scoring=Scoring(exact_match),
    )


def chats(count: int, *, questions: int = 3, seed: int = 5) -> list[Document]:
    documents = []
    for number in range(count):
        data, label = picture(seed, number)
        pieces: list = [Image(data)]
        for order in range(questions):
            pieces += [Text(f"Question {order} of {number}?", train=False), Text(label if order else "yes")]
        documents.append(Document(tuple(pieces), id=f"chat-{number}", metadata={"form": "chat"}))
    return documents


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[f"<|{name}|>" for name in MARKS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    library.train_from_iterator([document.text for document in captions(60)], trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    library.save(str(path))
    return Tokenizer(path)


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> MLLM:
    config = ModelConfig(
        image_token_id=tokenizer.image,
        vision=VisionConfig(image_size=24, patch_size=12, width=16, layers=1, heads=2, mlp_width=32),
        connector=ConnectorConfig(kind="average", tokens=4, width=16),
        decoder=DecoderConfig(
            vocabulary=tokenizer.vocabulary, width=32, layers=2, heads=2, kv_heads=1, head_width=16, mlp_width=48
        ),
    )
    mllm = MLLM(config).eval()
    mllm.initialise(3)
    return mllm


def test_shots_depend_on_seed_and_query_alone():
    task = a_task(pool=pool_of(12, first=100))
    first = [fewshot.draw_shots(task, query, shots=3, seed=1) for query in range(6)]
    again = [fewshot.draw_shots(task, query, shots=3, seed=1) for query in reversed(range(6))]
    assert first == again[::-1]
    assert len({tuple(shot.id for shot in shots) for shots in first}) == 6
    assert first != [fewshot.draw_shots(task, query, shots=3, seed=2) for query in range(6)]


def test_fewer_shots_are_the_first_of_more():
    task = a_task()
    for query in range(6):
        more = fewshot.draw_shots(task, query, shots=8, seed=0)
        assert fewshot.draw_shots(task, query, shots=4, seed=0) == more[:4]


def test_no_shot_shows_the_query():
    task = a_task()
    for query in range(6):
        shown = {shot.id for shot in fewshot.draw_shots(task, query, shots=11, seed=0)}
        assert shown == {f"e{number}" for number in range(12)} - {f"e{query}"}
    with pytest.raises(ValueError, match="11 examples to draw 12 shots"):
        fewshot.draw_shots(task, 0, shots=12, seed=0)


def test_a_prompt_is_shots_then_the_query():
    task = a_task(ask=fewshot.ask_caption)
    query, shot = task.queries[0], task.pool.read([9])[0]
    assert fewshot.prompt(task, query, shots=[shot]).pieces == (
        shot.image,
        Text(" A photo of", train=False),
        Text(f" {shot.answers[0]}\n", train=False),
        query.image,
        Text(" A photo of", train=False),
    )
    without_shots = fewshot.prompt(a_task(), query, shots=[])
    assert without_shots.pieces == (query.image, Text(" Question: What? Short answer:", train=False))


@pytest.mark.parametrize("form", ["plain", "chat"])
def test_no_text_of_a_prompt_is_trained(form: str, tokenizer: Tokenizer):
    task = a_task(form=form)
    document = fewshot.prompt(task, task.queries[0], shots=fewshot.draw_shots(task, 0, shots=4, seed=0))
    assert not encode(document, tokenizer, tile=TileSpec(16, 4), end=False).train.any()
    assert len(document.images) == 5


def test_a_chat_prompt_is_how_the_training_chat_begins(tokenizer: Tokenizer, tmp_path: Path):
    documents = chats(2)
    write_store(documents, tmp_path / "chats.lance")
    path = str(tmp_path / "chats.lance")
    task = easy_vqa.task(100, seed=0, queries=path, pool=path)
    trained = encode(documents[0], tokenizer, tile=TileSpec(16, 4))
    query = next(query for query in task.queries if query.id == "chat-0#0")
    encoded = encode(fewshot.prompt(task, query, shots=[]), tokenizer, tile=TileSpec(16, 4), end=False)
    assert trained.tokens[: len(encoded.tokens)].tolist() == encoded.tokens.tolist()
    assert trained.train[len(encoded.tokens)]
    assert fewshot.prompt(task, query, shots=[query]).pieces[-5] == Mark("end")


@given(st.lists(st.integers(0, 5), min_size=2, max_size=30), st.integers(0, 100))
def test_blind_queries_never_show_their_own_picture(groups: list[int], seed: int):
    queries = [example(number, group=group) for number, group in enumerate(groups)]
    if max(groups.count(group) for group in groups) * 2 > len(groups):
        with pytest.raises(ValueError, match="the same picture"):
            exchange_images(queries, seed=seed)
        return
    exchanged = exchange_images(queries, seed=seed)
    assert [query.id for query in exchanged] == [query.id for query in queries]
    assert all(ours.image != theirs.image for ours, theirs in zip(exchanged, queries, strict=True))
    assert sorted(q.image.data for q in exchanged) == sorted(q.image.data for q in queries)
    assert exchanged == exchange_images(queries, seed=seed)


def test_questions_spread_over_the_pictures(tmp_path: Path):
    write_store(chats(10, questions=4), tmp_path / "chats.lance")
    path = str(tmp_path / "chats.lance")
    for limit, most in ((10, 1), (20, 2), (40, 4), (400, 4)):
        task = easy_vqa.task(limit, seed=0, queries=path, pool=path)
        pictures = [query.id.partition("#")[0] for query in task.queries]
        assert len(set(pictures)) == 10
        assert max(map(pictures.count, pictures)) == most
    plain = easy_vqa_plain.task(20, seed=0, queries=path, pool=path)
    assert [q.id for q in plain.queries] == [q.id for q in easy_vqa.task(20, seed=0, queries=path, pool=path).queries]


def pages_of_labels() -> list[Document]:
    return [
        Document(
            tuple(
                piece
                for number in range(4)
                for piece in (Image(f"{language}/{page}/{number}".encode()), Text(f" {language} {page} {number}\n"))
            ),
            id=f"{language}/{page}",
            metadata={"language": language},
        )
        for page in range(4)
        for language in ("de", "fr")
    ]


@pytest.mark.parametrize("draw", ["query", "same", "similar"])
def test_shots_have_the_language_of_the_query(draw: str, tmp_path: Path):
    write_store(pages_of_labels(), tmp_path / "labels.lance")
    path = str(tmp_path / "labels.lance")
    task = languages.task(100, seed=0, queries=path, pool=path)
    assert len(task.queries) == 32
    similar = SimilarShots(task, lambda images: np.array([[1.0, image.data[-1]] for image in images]), seed=0)
    drawn = draw_all(task, shots=6, seed=3, protocol=Protocol(draw=draw), similar=similar)
    for query, examples in zip(task.queries, drawn, strict=True):
        assert len(examples) == 6
        assert {example.answers[0].split()[0] for example in examples} == {query.kind}
        assert query.image not in [example.image for example in examples]
    prompt = fewshot.prompt(task, task.queries[0], shots=drawn[0][:1])
    assert prompt.text == f" {drawn[0][0].answers[0]}\n"
    assert isinstance(prompt.pieces[-1], Image)
    with pytest.raises(ValueError, match="has 15 examples to draw 16 shots from"):
        draw_all(task, shots=16, seed=3, protocol=Protocol(draw=draw), similar=similar)


@pytest.mark.parametrize("change", ["no language", "two pictures in a row", "an empty label"])
def test_a_page_that_is_no_page_of_labels_is_named(change: str, tmp_path: Path):
    first, *others = pages_of_labels()
    if change == "no language":
        first = dataclasses.replace(first, metadata={})
    elif change == "two pictures in a row":
        first = dataclasses.replace(first, pieces=(first.pieces[0], *first.pieces))
    else:
        first = dataclasses.replace(first, pieces=(first.pieces[0], Text(" \n"), *first.pieces[2:]))
    write_store([first, *others], tmp_path / "labels.lance")
    path = str(tmp_path / "labels.lance")
    with pytest.raises(ValueError, match="'de/0' is no page of labels"):
        languages.task(4, seed=0, queries=path, pool=path)


def test_scores_without_a_model():
    task = a_task(pool=pool_of(5, answers=["b", "a", "a", "b", "c"]))
    assert majority_answer(task) == "a"
    task = a_task(pool=pool_of(1, answers=["x"]))
    assert chance_answers(task, seed=0) == ["x"] * 6


def test_vqa_answers_end_before_the_next_question():
    assert fewshot.clean_vqa(" red Question: what") == "red"
    assert fewshot.clean_vqa(" red, or blue Short") == "red"


def test_writing_stops_at_a_stop_string(monkeypatch, model: MLLM, tokenizer: Tokenizer):
    """A model that would write on and on: `generate` is replaced by one that types a fixed text."""

    def typed(engine, prompts, decoding, *, done):
        tokens: list[int] = []
        for token in tokenizer.encode(" a red circle\na blue one"):
            tokens.append(token)
            if decoding.stopped is not None and decoding.stopped(tokens):
                break
        lengths.append(len(tokens))
        return [Completion(tokens) for _ in prompts]

    lengths: list[int] = []
    monkeypatch.setattr(writer.Engine, "generate", typed)
    document = Document((Text("A photo of"),))
    ours = Writer(model, tokenizer, rows=2)
    assert ours.write([document], max_tokens=99, stops=("\n",)) == [" a red circle"]
    assert ours.write([document], max_tokens=99) == [" a red circle\na blue one"]
    assert lengths[0] < lengths[1]


def captioning(stores: dict[str, Path], limit: int = 6) -> Task:
    path = str(stores["captions"])
    task = captions_task.task(limit, seed=0, queries=path, pool=path)
    return dataclasses.replace(task, style=dataclasses.replace(task.style, max_tokens=5))


def test_an_evaluation_is_kept_and_not_done_twice(monkeypatch, stores, model, tokenizer, tmp_path: Path):
    task = captioning(stores)
    settings = Settings(tmp_path / "eval", limit=6)
    ours = Ours(model, tokenizer, name="step 1", rows=4)
    first = evaluate(ours, [task], settings=settings, shots=(2, 0))
    assert [score.shots for score in first.scores] == [0, 2]
    assert first.scores[0].gain is None
    assert first.scores[1].gain is not None
    answers = read_answers(settings.folder, first.scores[1])
    assert [answer.query for answer in answers] == [query.id for query in task.queries]
    assert all(len(answer.prompt.shots) == 2 and answer.blind.text is not None for answer in answers)
    mean = 100 * np.mean([answer.score for answer in answers])
    assert first.scores[1].score.mean == pytest.approx(mean)
    assert json.dumps(dataclasses.asdict(read_results(settings.folder))) == json.dumps(dataclasses.asdict(first))

    with monkeypatch.context() as patch:
        patch.setattr(
            writer.Engine, "generate", lambda *args, **kwargs: pytest.fail("a kept reply was asked for again")
        )
        again = evaluate(ours, [task], settings=settings, shots=(0, 2))
        assert again == first
        with pytest.raises(pytest.fail.Exception):
            evaluate(Ours(model, tokenizer, name="step 2"), [task], settings=settings, shots=(0,))
    wide = Console(width=160, record=True, file=io.StringIO())
    wide.print(score_table(first))
    shown = wide.export_text()
    assert "captions" in shown
    assert f"{first.scores[1].score.mean:.1f} [" in shown
    narrow = Console(width=80, record=True, file=io.StringIO())
    first.scores[0] = dataclasses.replace(first.scores[0], std=11.2, protocol="openflamingo")
    narrow.print(score_table(first, width=narrow.width))
    shown = narrow.export_text()
    assert shown.split()[3:9] == ["task", "shots", "queries", "score", "blind", "difference"]
    assert "…" not in shown
    assert "± 11.2" in shown
    assert shown.count("[") == 3 * len(first.scores) + 1  # of each interval, on one line, and of the caption
    assert len(re.findall(r"\[[^\n]*?\]", shown)) == 3 * len(first.scores) + 1


def test_answers_do_not_depend_on_their_neighbours(stores, model: MLLM, tokenizer: Tokenizer):
    task = captioning(stores)
    prompts = [fewshot.prompt(task, query, shots=[]) for query in task.queries]
    prompts += [fewshot.prompt(task, task.queries[1], shots=fewshot.draw_shots(task, 1, shots=3, seed=0))]
    written = []
    for rows in (1, 7):
        ours = Writer(model, tokenizer, rows=rows)
        written.append(ours.write(prompts, max_tokens=6))
    assert written[0] == written[1]


def test_each_picture_is_encoded_once(monkeypatch, stores, model: MLLM, tokenizer: Tokenizer):
    task, seen = captioning(stores), []
    encode_images = model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda x: seen.append(len(x)) or encode_images(x))
    ours = Writer(model, tokenizer, rows=2)
    shots = [fewshot.draw_shots(task, query, shots=4, seed=0) for query in range(6)]
    prompts = [fewshot.prompt(task, query, shots=drawn) for query, drawn in zip(task.queries, shots, strict=True)]
    ours.write(prompts, max_tokens=1)
    assert sum(seen) == len({image for prompt in prompts for image in prompt.images})


def test_the_loss_of_a_caption_is_the_training_loss(stores, model: MLLM, tokenizer: Tokenizer):
    query = captioning(stores).queries[0]
    caption = Document((query.image, Text(query.answers[0])))
    losses = Writer(model, tokenizer, rows=4).losses([caption, caption])
    whole = encode(caption, tokenizer, tile=TileSpec(16, 4))
    tokens = torch.from_numpy(whole.tokens.astype(np.int64))[None]
    batch = Batch(
        tokens_BT=tokens,
        targets_BT=torch.full_like(tokens, IGNORED),
        document_BT=torch.ones_like(tokens),
        position_BT=torch.arange(tokens.shape[1])[None],
        images_NCYX=torch.from_numpy(load(query.image.data, 24))[None],
        images=1,
        source_B=torch.zeros(1, dtype=torch.int64),
        sequence_B=torch.zeros(1, dtype=torch.int64),
    )
    with torch.no_grad():
        likely = model.decoder.logits(model.hidden(batch))[0, :-1].log_softmax(-1)
    learned = torch.from_numpy(whole.train[1:])
    expected = -likely.gather(1, tokens[0, 1:, None])[learned, 0].mean()
    assert losses == pytest.approx([float(expected)] * 2, abs=1e-5)


def test_an_unknown_task_names_the_known_ones():
    with pytest.raises(ValueError, match=r"no task 'vqav3'; known: .*, captions, .*, easy_vqa, "):
        load_task("vqav3", limit=1, seed=0)
