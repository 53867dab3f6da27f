"""How shots are drawn and shown, by whom prompts are answered, and what a call writes."""

import contextlib
import dataclasses
import json
from pathlib import Path

import layouts
import layouts_tuned
import numpy as np
import pytest
from conftest import picture

from mm1.document import Document, Image, Mark, Text
from mm1.eval import fewshot, shots
from mm1.eval.answers_page import write_page
from mm1.eval.fewshot import Example, Pool, Task
from mm1.eval.harness import Settings, evaluate_with, load_task
from mm1.eval.metrics.scores import cider, exact_match
from mm1.eval.results import compare, comparison, read_answers, read_results
from mm1.eval.shots import MM1, Protocol, Similar, draw_all, prompts


def example(number: int) -> Example:
    data, label = picture(7, number)
    return Example(f"e{number}", Image(data + b"%d" % number), "What?", (label,), reasoning=f"I see {label}.")


def a_task(**changes) -> Task:
    pool = Pool(30, lambda numbers: [example(number) for number in numbers])
    queries = [example(number) for number in range(5)]
    made = Task("made", queries, pool, ["a red circle"] * 30, fewshot.ask_vqa, exact_match, stops=fewshot.VQA_STOPS)
    return dataclasses.replace(made, **changes)


class Echo:
    """Answers that depend on the prompt alone: the last shot's answer, else `nothing`. Keeps what it was asked."""

    def __init__(self, name: str = "echo"):
        self.name, self.asked = name, []

    def write(self, asked, *, stops, longest, done, beams=1):
        self.asked += asked
        done(len(asked))
        texts = [[piece.text for piece in one.pieces if isinstance(piece, Text)] for one in asked]
        return [f" {one[-2].strip()} " if len(one) > 1 else "nothing" for one in texts]

    def likelihoods(self, asked, *, choices, done):
        return [[-float(len(text)) for text in texts] for texts in choices]

    def features(self, images):
        return np.array([[len(image.data) % 7, len(image.data) % 5, 1.0] for image in images])

    def places(self, prompt: Document) -> int:
        return len(prompt.pieces)


def asked(task: Task, protocol: Protocol, *, count: int = 4, similar: Similar | None = None) -> list[Document]:
    drawn = draw_all(task, shots=count, seed=0, protocol=protocol, similar=similar)
    return prompts(task, task.queries, drawn=drawn, shots=count, protocol=protocol)


def test_the_same_shots_stand_before_all_queries():
    task = a_task()
    drawn = draw_all(task, shots=4, seed=0, protocol=Protocol("same"))
    assert all(shown == drawn[0] for shown in drawn)
    assert not {shot.image for shot in drawn[0]} & {query.image for query in task.queries}
    assert drawn[0] == draw_all(task, shots=8, seed=0, protocol=Protocol("same"))[0][:4]
    assert drawn != draw_all(task, shots=4, seed=1, protocol=Protocol("same"))
    with pytest.raises(ValueError, match="25 examples whose picture no query shows; 26 shots"):
        draw_all(task, shots=26, seed=0, protocol=Protocol("same"))


def test_similar_shots_are_the_nearest_by_features_and_end_with_the_nearest():
    task, echo = a_task(), Echo()
    similar = Similar(task, echo.features, 0)
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
    plain, text = asked(task, MM1, count=0)[0], asked(task, Protocol(text_only=2), count=0)[0]
    assert plain.text.count("Question:") == 1
    assert text.text.count("Question:") == 3
    assert len(plain.images) == len(text.images) == 1
    assert text.images == (task.queries[0].image,)
    assert isinstance(text.pieces[-2], Image)


def test_reasoning_shots_show_how_and_the_answer_is_read_behind_it():
    task = shots.reasoning_task(a_task(clean=fewshot.clean_vqa))
    document = asked(task, Protocol(reasoning=True), count=2)[0]
    assert document.text.count("The answer is") == 2
    assert "I see a" in document.text
    assert task.answer("It is round and red. The answer is a red circle.", task.queries[0]) == "a red circle"
    assert task.longest > 100
    assert "." not in task.stops
    mute = a_task(pool=Pool(30, lambda numbers: [dataclasses.replace(example(n), reasoning="") for n in numbers]))
    with pytest.raises(ValueError, match="has no reasoning to show"):
        asked(mute, Protocol(reasoning=True))


def test_the_last_shots_are_shown_in_parts():
    task = a_task()
    low, mixed, high = (asked(task, Protocol(full=full), count=4)[0] for full in (0, 1, 4))
    assert [len(one.images) for one in (low, mixed, high)] == [4 + 5, 3 + 5 + 5, 4 * 5 + 5]
    assert [type(piece) for piece in mixed.pieces[:4]] == [Image, Text, Text, Image]
    assert len(asked(task, MM1, count=4)[0].images) == 5
    whole, *parts = high.images[-5:]
    assert whole == task.queries[0].image
    assert len(set(parts)) > 1


def test_choices_are_taken_by_likelihood(tmp_path: Path):
    layouts_tuned.mmbench(tmp_path)
    task = load_task("mmbench", limit=9, seed=0, data=str(tmp_path))
    settings = Settings(tmp_path / "eval", "echo", protocol=Protocol(scoring="loglikelihood"))
    results = evaluate_with(Echo(), tasks=[task], settings=settings, shots=(0,))
    lines = read_answers(settings.folder, results.cells[0])
    assert all(line["answer"] == "A" for line in lines)  # red is the shortest
    assert all("A. red" not in line["request"] for line in lines)
    with pytest.raises(ValueError, match="has questions without choices"):
        evaluate_with(Echo(), tasks=[a_task()], settings=settings, shots=(0,))


def test_trials_differ_in_their_shots_alone(tmp_path: Path):
    task, echo = a_task(), Echo()
    settings = Settings(tmp_path, "echo", trials=3)
    results = evaluate_with(echo, tasks=[task], settings=settings, shots=(0, 2))
    none, two = results.cells
    assert (none.trials, two.trials) == (1, 3)
    assert none.std is None
    files = [read_answers(tmp_path, two, trial=trial) for trial in range(3)]
    assert len({json.dumps([line["shots"] for line in lines]) for lines in files}) == 3
    means = [100 * np.mean([line["score"] for line in lines]) for lines in files]
    assert two.score.mean == pytest.approx(np.mean(means))
    assert two.std == pytest.approx(np.std(means, ddof=1))
    before = len(echo.asked)
    assert evaluate_with(echo, tasks=[task], settings=settings, shots=(0, 2)) == results
    assert len(echo.asked) == before  # all from files


def test_every_request_is_kept_with_its_prompt(tmp_path: Path):
    task, echo = a_task(), Echo()
    cell = evaluate_with(echo, tasks=[task], settings=Settings(tmp_path, "echo"), shots=(2,)).cells[0]
    lines = read_answers(tmp_path, cell)
    for line, prompt in zip(lines, echo.asked, strict=False):
        assert line["request"].count("<image ") == len(prompt.images) == 3
        assert line["request"].endswith("Short answer:")
    assert len({line["prompt"] for line in lines}) == len(lines)
    assert cell.blind is not None
    assert cell.chance == pytest.approx(
        100 * exact_match(["a red circle"] * 5, [q.answers for q in task.queries]).mean()
    )


def test_protocols_stand_beside_each_other(tmp_path: Path):
    task = a_task()
    for protocol in (MM1, Protocol("same"), Protocol("similar", full=1)):
        evaluate_with(Echo(), tasks=[task], settings=Settings(tmp_path, "echo", protocol=protocol), shots=(2,))
    cells = read_results(tmp_path).cells
    assert [cell.name for cell in cells] == ["made-2shot", "made-2shot-same", "made-2shot-similar-full1"]
    assert all((tmp_path / name).is_file() for cell in cells for name in cell.files)


def test_totals_stand_beside_blind_majority_and_chance(tmp_path: Path):
    layouts_tuned.mme(tmp_path)
    layouts_tuned.pope(tmp_path / "pope")
    tasks = [load_task(name, limit=9, seed=0, data=str(tmp_path)) for name in ("mme", "pope")]
    cells = evaluate_with(Echo(), tasks=tasks, settings=Settings(tmp_path, "echo"), shots=(0, 1)).cells
    for cell in cells:
        for values in cell.totals.values():
            assert values.keys() == {"score", "blind", "majority", "chance"}
    always_no = next(cell for cell in cells if cell.task == "mme").totals["perception"]
    assert always_no["majority"] == pytest.approx(2 * 50)  # count and OCR: half right, no picture whole
    assert read_results(tmp_path).cells == cells


def test_two_runs_are_compared_query_by_query(tmp_path: Path):
    task = a_task()
    for name, model in (("a", Echo("a")), ("b", Echo("b"))):
        evaluate_with(model, tasks=[task], settings=Settings(tmp_path / name / "eval", name), shots=(2, 0))
    path = tmp_path / "b" / "eval" / "made-2shot.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    theirs = [line["score"] for line in lines]
    path.write_text("".join(json.dumps(line | {"score": 1.0}) + "\n" for line in reversed(lines)))
    zero, two = compare(tmp_path / "a", tmp_path / "b")
    assert (zero.difference.mean, zero.queries) == (0, 5)
    assert two.difference.mean == pytest.approx(100 * (np.mean(theirs) - 1))
    assert two.difference.low <= two.difference.mean <= two.difference.high
    assert comparison([zero, two]).row_count == 2
    with pytest.raises(ValueError, match="has no scores; run mm1 eval"):
        compare(tmp_path / "a", tmp_path / "c")
    evaluate_with(Echo(), tasks=[task], settings=Settings(tmp_path / "c" / "eval", "c"), shots=(3,))
    with pytest.raises(ValueError, match="no task at the same shots in both"):
        compare(tmp_path / "a", tmp_path / "c")


def test_the_page_shows_every_answer_with_its_picture(tmp_path: Path):
    layouts.vqav2(tmp_path)
    task = load_task("vqav2", limit=9, seed=0, data=str(tmp_path))
    results = evaluate_with(Echo(), tasks=[task], settings=Settings(tmp_path, "echo"), shots=(0, 2))
    page = write_page(tmp_path, [task], results).read_text()
    assert page.count("<article") == len(task.queries)
    assert page.count("data:image/jpeg;base64,") == len(task.queries)
    assert "vqav2-0shot=wrong" in page
    assert "vqav2-2shot=right" in page
    assert "http" not in page.replace("https://", "")


def test_ranks_share_the_files_and_rank_0_sums_up(tmp_path: Path, monkeypatch):
    from mm1.eval import harness

    task, waited = a_task(), []
    monkeypatch.setattr(harness.dist, "connected", lambda **how: contextlib.nullcontext())
    monkeypatch.setattr(harness.dist, "gathered", waited.append)
    monkeypatch.setenv("WORLD_SIZE", "3")
    echoes = []
    for rank in (1, 2, 0):
        monkeypatch.setenv("RANK", str(rank))
        echoes.append(Echo())
        settings = Settings(tmp_path / "many", "echo", trials=2)
        results = evaluate_with(echoes[-1], tasks=[task], settings=settings, shots=(0, 2, 3))
    assert sum(len(echo.asked) for echo in echoes) == 5 * 2 * 5  # files x (right and blind) x queries: none twice
    assert all(echo.asked for echo in echoes)
    assert len(waited) == 3
    monkeypatch.setenv("WORLD_SIZE", "1")
    alone = evaluate_with(Echo(), tasks=[task], settings=Settings(tmp_path / "one", "echo", trials=2), shots=(0, 2, 3))
    assert results == alone


def test_a_judge_is_needed_and_asked_once(tmp_path: Path):
    from mm1.eval.judge import Judge

    class Said:
        name = "a judge"

        def __init__(self, reply: str):
            self.reply_text, self.asked = reply, []

        def reply(self, said, *, longest):
            self.asked.append(said)
            return self.reply_text

    layouts_tuned.mm_vet(tmp_path)
    task = load_task("mm_vet", limit=9, seed=0, data=str(tmp_path))
    with pytest.raises(ValueError, match="is scored by a judge: give --judge"):
        evaluate_with(Echo(), tasks=[task], settings=Settings(tmp_path, "echo"), shots=(0,))
    counts = []
    for _ in range(2):
        server = Said("0.4")
        settings = Settings(tmp_path / "eval", "echo", judge=Judge(server, tmp_path / "eval"))
        cell = evaluate_with(Echo(), tasks=[task], settings=settings, shots=(0,)).cells[0]
        counts.append(len(server.asked))
    assert (cell.score.mean, cell.judge) == (pytest.approx(40), "a judge")
    assert counts[0] > 0
    assert counts[1] == 0
    for reply in ("good", "7"):
        settings = dataclasses.replace(settings, judge=Judge(Said(reply), tmp_path / reply))
        with pytest.raises(ValueError, match="a judge on query v1_0: a number from 0 to 1 is expected"):
            evaluate_with(
                Echo(reply), tasks=[task], settings=dataclasses.replace(settings, model_name=reply), shots=(0,)
            )


def test_marks_of_a_chat_stay_in_the_request():
    from mm1.eval.models import as_text, messages

    task = a_task(form="chat", ask=lambda one: one.question)
    document = asked(task, MM1, count=1)[0]
    assert as_text(document).startswith("<|user|><image ")
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

    class Says(Echo):
        def write(self, asked, **how):
            return [words[0], "a green thing", "nothing", *words[3:]]

    settings = Settings(tmp_path, "says", with_blind=False)
    page = write_page(tmp_path, [task], evaluate_with(Says(), tasks=[task], settings=settings, shots=(0,))).read_text()
    states = [page.count(f"made-0shot={state} ") for state in ("right", "partly", "wrong")]
    assert states == [3, 1, 1]
