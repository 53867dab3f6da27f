"""How shots are drawn and shown, how models are asked, and what a call writes."""

import contextlib
import dataclasses
import json
from pathlib import Path

import layouts
import layouts_tuned
import numpy as np
import pytest
from conftest import picture

from mm1.data.chat_format import messages
from mm1.data.tiles import tiled
from mm1.document import Document, Image, Mark, Text
from mm1.eval import fewshot, shots
from mm1.eval.answers_page import write_page
from mm1.eval.comparison import compare, comparison_table
from mm1.eval.fewshot import Example, Pool, PromptStyle, Scoring, Task
from mm1.eval.harness import evaluate, load_task
from mm1.eval.metrics.captions import cider
from mm1.eval.metrics.references import Metric
from mm1.eval.metrics.vqa import exact_match
from mm1.eval.model import Done, Model, Reply, prompt_hash, prompt_text
from mm1.eval.results import Answer, read_answers, read_results, save_results
from mm1.eval.shots import DEFAULT, Protocol, SimilarShots, draw_all, prompts
from mm1.eval.task_evaluation import Settings
from mm1.tiling import KINDS, TileSpec


def example(number: int) -> Example:
    data, label = picture(7, number)
    return Example(f"e{number}", Image(data + b"%d" % number), "What?", (label,), reasoning=f"I see {label}.")


def a_task(*, metric: Metric = exact_match, **style) -> Task:
    pool = Pool(30, lambda numbers: [example(number) for number in numbers], ["a red circle"] * 30)
    queries = [example(number) for number in range(5)]
    default = PromptStyle(fewshot.ask_vqa, stops=fewshot.VQA_STOPS)
    return Task("made", queries, pool, dataclasses.replace(default, **style), Scoring(metric))


def reply(texts: list[str], done: Done) -> list[Reply]:
    """Give each request its text."""
    replies = [Reply(text) for text in texts]
    for number, one in enumerate(replies):
        done(number, one)
    return replies


class Echo(Model):
    """Answers that depend on the prompt alone: the last shot's answer, else `nothing`. Keeps the prompts."""

    def __init__(self, name: str = "echo"):
        self.name, self.prompts = name, []

    def generate(self, requests, *, done):
        self.prompts += [request.prompt for request in requests]
        texts = [[piece.text for piece in request.prompt.pieces if isinstance(piece, Text)] for request in requests]
        return reply([f" {one[-2].strip()} " if len(one) > 1 else "nothing" for one in texts], done)

    def loglikelihoods(self, requests, *, done):
        for number, request in enumerate(requests):
            done(number, [-float(len(text)) for text in request.choices])

    def features(self, images):
        return np.array([[len(image.data) % 7, len(image.data) % 5, 1.0] for image in images])

    def prompt_tokens(self, prompt: Document) -> int:
        return len(prompt.pieces)


def documents(task: Task, protocol: Protocol, *, count: int = 4, similar: SimilarShots | None = None) -> list[Document]:
    drawn = draw_all(task, shots=count, seed=0, protocol=protocol, similar=similar)
    return prompts(task, task.queries, drawn=drawn, shots=count, protocol=protocol)


def test_the_same_shots_stand_before_all_queries():
    task = a_task()
    drawn = draw_all(task, shots=4, seed=0, protocol=Protocol("same"))
    for query, shown in zip(task.queries, drawn, strict=True):
        assert query.image not in {shot.image for shot in shown}
    plain = next(shown for shown in drawn if not {q.image for q in task.queries} & {shot.image for shot in shown})
    assert sum(shown == plain for shown in drawn) >= 4  # a query that is among the examples has the next one instead
    assert drawn[0] == draw_all(task, shots=8, seed=0, protocol=Protocol("same"))[0][:4]
    assert drawn != draw_all(task, shots=4, seed=1, protocol=Protocol("same"))
    with pytest.raises(ValueError, match="29 examples to draw 30 shots from"):
        draw_all(task, shots=30, seed=0, protocol=Protocol("same"))


def test_similar_shots_are_the_nearest_by_features_and_end_with_the_nearest():
    task, echo = a_task(), Echo()
    similar = SimilarShots(task, echo.features, 0)
    pool = [example(number) for number in range(30)]
    unit = [row / np.linalg.norm(row) for row in echo.features([one.image for one in pool])]
    for query, drawn in enumerate(draw_all(task, shots=3, seed=0, protocol=Protocol("similar"), similar=similar)):
        assert task.queries[query].image not in {shot.image for shot in drawn}
        near = [float(unit[int(shot.id[1:])] @ unit[query]) for shot in drawn]
        others = sorted((float(unit[n] @ unit[query]) for n in range(30) if n != query), reverse=True)
        assert near == pytest.approx(others[:3][::-1])
    with pytest.raises(ValueError, match="similar shots need a model that gives features"):
        draw_all(task, shots=3, seed=0, protocol=Protocol("similar"))


def test_zero_shots_show_nothing_unless_asked_for_text():
    task = a_task()
    plain, text = documents(task, DEFAULT, count=0)[0], documents(task, Protocol(text_only_shots=2), count=0)[0]
    assert plain.text.count("Question:") == 1
    assert text.text.count("Question:") == 3
    assert len(plain.images) == len(text.images) == 1
    assert text.images == (task.queries[0].image,)
    assert isinstance(text.pieces[-2], Image)


def test_reasoning_shots_show_how_and_the_answer_is_read_behind_it():
    task = shots.reasoning_task(a_task(clean=fewshot.clean_vqa))
    document = documents(task, Protocol(reasoning=True), count=2)[0]
    assert document.text.count("The answer is") == 2
    assert "I see a" in document.text
    assert task.answer("It is round and red. The answer is a red circle.", task.queries[0]) == "a red circle"
    assert task.style.max_tokens > 100
    assert "." not in task.style.stops
    unexplained = Pool(30, lambda numbers: [dataclasses.replace(example(n), reasoning="") for n in numbers], [])
    mute = dataclasses.replace(a_task(), pool=unexplained)
    with pytest.raises(ValueError, match="has no reasoning to show"):
        documents(mute, Protocol(reasoning=True))


def test_the_last_shots_are_shown_in_parts():
    task = a_task()
    low, mixed, high = (documents(task, Protocol(subimage_shots=last), count=4)[0] for last in (0, 1, 4))
    assert [len(one.images) for one in (low, mixed, high)] == [4 + 5, 3 + 5 + 5, 4 * 5 + 5]
    assert [type(piece) for piece in mixed.pieces[:4]] == [Image, Text, Text, Image]
    assert len(documents(task, DEFAULT, count=4)[0].images) == 5
    whole, *parts = high.images[-5:]
    assert whole == task.queries[0].image
    assert len(set(parts)) > 1
    assert {part.data for part in parts} == {whole.data}  # boxes of the same bytes


def test_a_model_with_a_tiling_shows_the_last_shots_in_its_own_tiles_and_no_quarter_twice():
    task, protocol = a_task(), Protocol(subimage_shots=1)
    drawn = draw_all(task, shots=4, seed=0, protocol=protocol)
    document = prompts(task, task.queries, drawn=drawn, shots=4, protocol=protocol, tiles=True)[0]
    assert [image.in_tiles for image in document.images] == [False, False, False, True, True]
    assert all(image.box is None for image in document.images)
    counts = [len(picture.tiles) for picture in tiled(document, TileSpec(4, 4, KINDS["mm1"]))]
    assert counts == [1, 1, 1, 5, 5]
    plain = prompts(task, task.queries, drawn=drawn, shots=4, protocol=DEFAULT, tiles=True)[0]
    assert [len(picture.tiles) for picture in tiled(plain, TileSpec(4, 4, KINDS["mm1"]))] == [5] * 5
    assert "overview" in prompt_text(document)
    assert prompt_hash(document) != prompt_hash(plain)


def test_choices_are_taken_by_likelihood(tmp_path: Path):
    layouts_tuned.mmbench(tmp_path)
    task = load_task("mmbench", limit=9, seed=0, data=str(tmp_path))
    settings = Settings(tmp_path / "eval", protocol=Protocol(scoring="loglikelihood"))
    results = evaluate(Echo(), [task], settings=settings, shots=(0,))
    answers = read_answers(settings.folder, results.scores[0])
    assert all(answer.text == "A" for answer in answers)  # red is the shortest
    assert all("A. red" not in answer.prompt.text for answer in answers)
    with pytest.raises(ValueError, match="has questions without choices"):
        evaluate(Echo(), [a_task()], settings=settings, shots=(0,))


def test_trials_differ_in_their_shots_alone(tmp_path: Path):
    task, echo = a_task(), Echo()
    settings = Settings(tmp_path, trials=3)
    results = evaluate(echo, [task], settings=settings, shots=(0, 2))
    none, two = results.scores
    assert (none.trials, two.trials) == (1, 3)
    assert none.std is None
    files = [read_answers(tmp_path, two, trial=trial) for trial in range(3)]
    assert len({json.dumps([answer.prompt.shots for answer in answers]) for answers in files}) == 3
    means = [100 * np.mean([answer.score for answer in answers]) for answers in files]
    assert two.score.mean == pytest.approx(np.mean(means))
    assert two.std == pytest.approx(np.std(means, ddof=1))
    before = len(echo.prompts)
    assert evaluate(echo, [task], settings=settings, shots=(0, 2)) == results
    assert len(echo.prompts) == before  # all from files


def test_every_request_is_kept_with_its_prompt(tmp_path: Path):
    task, echo = a_task(), Echo()
    score = evaluate(echo, [task], settings=Settings(tmp_path), shots=(2,)).scores[0]
    answers = read_answers(tmp_path, score)
    for answer, prompt in zip(answers, echo.prompts, strict=False):
        assert answer.prompt.text.count("<image ") == len(prompt.images) == 3
        assert answer.prompt.text.endswith("Short answer:")
    assert len({answer.prompt.hash for answer in answers}) == len(answers)
    assert score.blind is not None
    assert score.chance == pytest.approx(
        100 * exact_match(["a red circle"] * 5, [q.answers for q in task.queries]).mean()
    )


def test_files_of_0_1_are_read_and_lines_are_written_as_there(tmp_path: Path):
    line = {"query": "q", "prompt": "hash", "request": "<image 1> What?", "shots": ["s"], "answer": "red"}
    line |= {"references": ["red"], "score": 1.0, "blind_answer": "blue", "blind_score": 0.0, "places": 9}
    assert list(Answer.from_record({**line, "settings": "mark"}).record().items()) == list(line.items())
    interval = {"mean": 1.0, "low": 0.5, "high": 1.5}
    cell = {"task": "made", "shots": 4, "queries": 1, "score": interval, "blind": interval, "difference": interval}
    cell |= {"gain": None, "majority": 1.0, "majority_answer": "red", "chance": 1.0, "longest_prompt": 9}
    cell |= {"model_name": "step 1", "seed": 0, "limit": 1, "protocol": "full1"}
    (tmp_path / "summary.json").write_text(json.dumps({"cells": [cell], "losses": []}))
    (tmp_path / "made-4shot-full1.jsonl").write_text(json.dumps(line) + "\n")
    (score,) = read_results(tmp_path).scores
    assert [answer.text for answer in read_answers(tmp_path, score)] == ["red"]
    save_results(read_results(tmp_path), tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["cells"][0].items() >= cell.items()


def test_protocols_stand_beside_each_other(tmp_path: Path):
    task = a_task()
    for protocol in (DEFAULT, Protocol("same"), Protocol("similar", subimage_shots=1)):
        evaluate(Echo(), [task], settings=Settings(tmp_path, protocol=protocol), shots=(2,))
    scores = read_results(tmp_path).scores
    assert [score.name for score in scores] == ["made-2shot", "made-2shot-same", "made-2shot-similar-subimage1"]
    assert all((tmp_path / name).is_file() for score in scores for name in score.files)


def test_totals_stand_beside_blind_majority_and_chance(tmp_path: Path):
    layouts_tuned.mme(tmp_path)
    layouts_tuned.pope(tmp_path / "pope")
    tasks = [load_task(name, limit=9, seed=0, data=str(tmp_path)) for name in ("mme", "pope")]
    scores = evaluate(Echo(), tasks, settings=Settings(tmp_path), shots=(0, 1)).scores
    for score in scores:
        for values in score.totals.values():
            assert values.keys() == {"score", "blind", "majority", "chance"}
    always_no = next(score for score in scores if score.task == "mme").totals["perception"]
    assert always_no["majority"] == pytest.approx(2 * 50)  # count and OCR: half right, no picture whole
    assert read_results(tmp_path).scores == scores


def test_two_runs_are_compared_query_by_query(tmp_path: Path):
    task = a_task()
    for name, model in (("a", Echo("a")), ("b", Echo("b"))):
        evaluate(model, [task], settings=Settings(tmp_path / name / "eval"), shots=(2, 0))
    path = tmp_path / "b" / "eval" / "made-2shot.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    theirs = [line["score"] for line in lines]
    path.write_text("".join(json.dumps(line | {"score": 1.0}) + "\n" for line in reversed(lines)))
    zero, two = compare(tmp_path / "a", tmp_path / "b")
    assert (zero.difference.mean, zero.queries) == (0, 5)
    assert two.difference.mean == pytest.approx(100 * (np.mean(theirs) - 1))
    assert two.difference.low <= two.difference.mean <= two.difference.high
    assert comparison_table([zero, two]).row_count == 2
    with pytest.raises(ValueError, match="has no scores; run mm1 eval"):
        compare(tmp_path / "a", tmp_path / "c")
    others = {"data": "a set, 5 rows, 123", "split": "test", "form": "chat", "metric": "anls"}
    recorded = json.loads((tmp_path / "b" / "eval" / "summary.json").read_text())
    recorded["cells"][0] |= {"data": "a set, 6 rows, 124"}  # the first is of the shipped sample, and says no data
    (tmp_path / "b" / "eval" / "summary.json").write_text(json.dumps(recorded))
    assert compare(tmp_path / "a", tmp_path / "b")
    for name, value in others.items():
        for run, text in (("a", f"first {name}"), ("b", value)):
            path = tmp_path / run / "eval" / "summary.json"
            recorded = json.loads(path.read_text())
            recorded["cells"][1] |= dict.fromkeys(others, "one") | {name: text}
            path.write_text(json.dumps(recorded))
        with pytest.raises(ValueError, match=f"can't be compared: made-2shot: {name} 'first {name}' and '{value}'"):
            compare(tmp_path / "a", tmp_path / "b")
    evaluate(Echo("c"), [task], settings=Settings(tmp_path / "c" / "eval"), shots=(3,))
    with pytest.raises(ValueError, match=r"no task at the same shots .* in both: .*made-2shot"):
        compare(tmp_path / "a", tmp_path / "c")


def test_the_page_shows_every_answer_with_its_picture(tmp_path: Path):
    layouts.vqav2(tmp_path)
    task = load_task("vqav2", limit=9, seed=0, data=str(tmp_path))
    results = evaluate(Echo(), [task], settings=Settings(tmp_path), shots=(0, 2))
    page = write_page(tmp_path, [task], results=results).read_text()
    assert page.count("<article") == len(task.queries)
    assert page.count("data:image/jpeg;base64,") == len(task.queries)
    assert "vqav2-0shot=wrong" in page
    assert "vqav2-2shot=right" in page
    assert "http" not in page.replace("https://", "")


def test_ranks_share_the_files_and_rank_0_sums_up(tmp_path: Path, monkeypatch):
    from mm1.eval import harness

    task, waited = a_task(), []
    monkeypatch.setattr(harness.dist, "connected", lambda **how: contextlib.nullcontext())
    monkeypatch.setattr(harness.dist, "all_gather_object", waited.append)
    monkeypatch.setenv("WORLD_SIZE", "3")
    echoes = []
    for rank in (1, 2, 0):
        monkeypatch.setenv("RANK", str(rank))
        echoes.append(Echo())
        settings = Settings(tmp_path / "many", trials=2)
        results = evaluate(echoes[-1], [task], settings=settings, shots=(0, 2, 3))
    assert (
        sum(len(echo.prompts) for echo in echoes) == 5 + 4 * 2 * 5
    )  # at 0 shots the blind requests are the right ones
    assert all(echo.prompts for echo in echoes)
    assert len(waited) == 3
    monkeypatch.setenv("WORLD_SIZE", "1")
    alone = evaluate(Echo(), [task], settings=Settings(tmp_path / "one", trials=2), shots=(0, 2, 3))
    assert results == alone


def test_marks_of_a_chat_stay_in_the_request():
    task = a_task(form="chat", ask=lambda one: one.question)
    document = documents(task, DEFAULT, count=1)[0]
    assert prompt_text(document).startswith("<|user|><image ")
    assert [(turn["role"], len(turn["content"])) for turn in messages(document)] == [
        *(("user", 2), ("assistant", 1), ("user", 2))
    ]
    assert isinstance(document.pieces[-1], Mark)


def test_a_caption_is_right_where_it_is_a_reference(tmp_path: Path):
    task = a_task(metric=cider)
    words = [f"a {word} circle beside the {word} square" for word in ("red", "green", "blue", "black", "grey")]
    task = dataclasses.replace(
        task, queries=[dataclasses.replace(one, answers=(text,)) for one, text in zip(task.queries, words, strict=True)]
    )

    class Captions(Echo):
        def generate(self, requests, *, done):
            return reply(
                [words[0], "a green thing", "nothing", *words[3:]], done
            )  # blind they are asked no more: the requests are equal

    results = evaluate(Captions(), [task], settings=Settings(tmp_path), shots=(0,))
    page = write_page(tmp_path, [task], results=results).read_text()
    states = [page.count(f"made-0shot={state} ") for state in ("right", "partly", "wrong")]
    assert states == [3, 1, 1]
