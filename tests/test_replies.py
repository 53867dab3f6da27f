"""Replies are kept as they come: what stops a call loses what is in flight, and nothing is asked twice."""

import dataclasses
import io
import multiprocessing
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import layouts
import pytest
from json_server import JsonHandler, RunningServer
from rich.console import Console
from test_protocol import Echo, a_task

from mm1.document import Document, Text
from mm1.eval import rules
from mm1.eval.answers_page import write_page
from mm1.eval.comparison import compare
from mm1.eval.harness import evaluate, load_task
from mm1.eval.http_model import HttpModel
from mm1.eval.model import Reply, Request, prompt_hash
from mm1.eval.replies import KeptReplies
from mm1.eval.results import Results, read_answers, read_results, save_results, score_table
from mm1.eval.shots import Protocol
from mm1.eval.task_evaluation import Settings


class Breaks(Echo):
    """Replies to `count` requests, and then the process has an error."""

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def generate(self, requests, *, done):
        for number, request in enumerate(requests):
            if len(self.prompts) == self.count:
                raise RuntimeError("out of memory")
            super().generate([request], done=lambda _, reply, number=number: done(number, reply))


@pytest.mark.parametrize("count", [0, 1, 7, 9])
def test_an_error_loses_no_reply_and_the_next_call_asks_the_missing_ones(count: int, tmp_path: Path):
    task, whole = a_task(), Echo()
    expected = evaluate(whole, [task], settings=Settings(tmp_path / "whole"), shots=(2,))
    broken, again = Breaks(count), Echo()
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate(broken, [task], settings=Settings(tmp_path / "cut"), shots=(2,))
    assert evaluate(again, [task], settings=Settings(tmp_path / "cut"), shots=(2,)) == expected
    assert [*broken.prompts, *again.prompts] == whole.prompts
    assert (tmp_path / "cut" / "made-2shot.jsonl").read_text() == (tmp_path / "whole" / "made-2shot.jsonl").read_text()


def test_a_line_that_was_cut_off_is_asked_again(tmp_path: Path):
    path, echo = tmp_path / "made-1shot.jsonl", Echo()
    evaluate(echo, [a_task()], settings=Settings(tmp_path), shots=(1,))
    kept = tmp_path / "replies" / path.name
    whole = kept.read_bytes()
    assert whole.count(b"\n") > 5
    for cut in (1, 30):
        kept.write_bytes(whole[:-cut])
        path.unlink()
        again = Echo()
        evaluate(again, [a_task()], settings=Settings(tmp_path), shots=(1,))
        assert len(again.prompts) == 1
        assert kept.read_bytes() == whole


def test_kept_replies_are_scored_by_the_rules_of_today(tmp_path: Path):
    settings, parse = Settings(tmp_path / "eval"), lambda text, query: text.lower()

    def under(rule) -> tuple[float, list[str], Echo]:
        echo, task = Echo(), a_task()
        task = dataclasses.replace(task, scoring=dataclasses.replace(task.scoring, parse=rule))
        (score,) = evaluate(echo, [task], settings=settings, shots=(1,)).scores
        return score.score.mean, [answer.text for answer in read_answers(settings.folder, score)], echo

    points, texts, echo = under(parse)
    assert echo.prompts
    other, others, echo = under(lambda text, query: "unread")
    assert (other, set(others), echo.prompts) == (0.0, {"unread"}, [])
    assert under(parse)[:2] == (points, texts)


def test_scores_of_other_rules_are_named_and_not_compared(tmp_path: Path):
    (score,) = evaluate(Echo(), [a_task()], settings=Settings(tmp_path), shots=(1,)).scores
    shutil.copytree(tmp_path, tmp_path / "b" / "eval")
    assert compare(tmp_path, tmp_path / "b")[0].difference.mean == 0
    for other in ("", "of yesterday"):
        save_results(Results([dataclasses.replace(score, rules=other)]), tmp_path / "b" / "eval")
        with pytest.raises(ValueError, match="made-1shot: scored by two versions of the scoring rules"):
            compare(tmp_path, tmp_path / "b")
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(score_table(read_results(tmp_path / "b" / "eval")), score_table(read_results(tmp_path)))
    assert console.export_text().count("under other scoring rules") == 1


def test_the_rules_of_a_task_are_the_code_that_its_scores_come_from(tmp_path: Path, monkeypatch):
    folder = tmp_path / "eval"
    shutil.copytree(rules.EVAL, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(rules, "EVAL", folder)
    scoring = {
        "mathvista": [
            "shots.py",
            "fewshot.py",
            "judge.py",
            "task_evaluation.py",
            "data/published.py",
            "data/readings.py",
        ],
        "aokvqa": ["data/styles.py", "data/examples.py", "metrics/letters_cjk.py", "metrics/short_answers.py"],
        "easy_vqa_plain": ["tasks/easy_vqa.py", "tasks/easy_vqa_plain.py", "metrics/vqa.py", "shots.py"],
    }
    others = {"mmbench": ["metrics/statistics.py", "data/hub.py", "pace.py", "results.py", "tasks/ai2d.py"]}
    for counts, tasks in ((True, scoring), (False, others)):
        for task, names in tasks.items():
            for name in names:
                before = rules.rules_of.__wrapped__(task)
                with (folder / name).open("a") as file:
                    file.write("# changed\n")
                assert (rules.rules_of.__wrapped__(task) != before) == counts, (task, name)


def test_equal_requests_are_asked_once_and_other_models_by_themselves(tmp_path: Path):
    from mm1.document import Document, Text
    from mm1.eval.model import Request

    one, two = (Request(Document((Text(text),)), stops=(".",)) for text in ("a", "b"))
    echo, finished = Echo(), []
    kept = KeptReplies(tmp_path / "kept.jsonl", echo)
    kept.answer([one, two, one], done=lambda number, reply: finished.append(number))
    assert (len(echo.prompts), finished) == (2, [0, 1])
    kept.answer([Request(one.prompt, stops=(".",), max_tokens=9), one])
    assert len(echo.prompts) == 3
    other = Echo("other")
    KeptReplies(tmp_path / "kept.jsonl", other).answer([one])
    assert len(other.prompts) == 1


class Server(RunningServer):
    """An OpenAI server whose answer to request number n, from 0, is `answer(n)`: a status and a content."""

    def __init__(self, answer):
        self.answer, self.bodies, self.lock = answer, [], threading.Lock()
        outer = self

        class Handler(JsonHandler):
            def do_POST(self):
                body = self.body()
                with outer.lock:
                    number = len(outer.bodies)
                    outer.bodies.append(body)
                code, content = outer.answer(number)
                self.answer(code, {"choices": [{"message": {"content": content}}]} if code == 200 else {"error": "no"})

        super().__init__(Handler)

    def model(self) -> HttpModel:
        return HttpModel(self.url, model="served", retry_seconds=0.01)


@pytest.fixture
def serve():
    servers = []

    def start(answer) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def test_refused_and_empty_replies_are_counted_by_name_and_the_refused_asked_again(serve, tmp_path: Path):
    answers = {3: (400, ""), 5: (200, None)}
    server = serve(lambda number: answers.get(number, (200, "red")))
    layouts.vqav2(tmp_path / "data")
    task = load_task("vqav2", limit=6, seed=0, data=str(tmp_path / "data"), form="chat")
    settings, model = Settings(tmp_path / "eval"), server.model()
    model.parallel = 1  # requests come in order
    (score,) = evaluate(model, [task], settings=settings, shots=(0,)).scores
    assert score.counted["refused"] == score.counted["no content"] == 1
    assert read_results(settings.folder).scores[0].counted == score.counted
    by_problem = {answer.own.problem: answer for answer in read_answers(settings.folder, score)}
    assert by_problem.keys() == {"", "no content: null", next(name for name in by_problem if "answered 400" in name)}
    assert all(answer.score == 0 for name, answer in by_problem.items() if name)
    page = write_page(settings.folder, [task], results=read_results(settings.folder)).read_text()
    assert "refused 1" in page
    before = len(server.bodies)
    (again,) = evaluate(server.model(), [task], settings=settings, shots=(0,)).scores
    assert server.bodies[before:] == [server.bodies[3]]
    assert "refused" not in again.counted
    assert again.counted["no content"] == 1
    assert again.score.mean > score.score.mean


def test_a_reply_in_parts_is_their_text_and_any_other_is_named(serve):
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "a red"}, {"type": "text", "text": " car"}]
    request = Request(Document((Text("What?", train=False),)))
    assert serve(lambda number: (200, parts)).model().generate([request]) == [Reply("a red car")]
    for content in (5, ["red"], {"text": "red"}):
        with pytest.raises(ValueError, match="must answer choices with a message"):
            serve(lambda number, content=content: (200, content)).model().generate([request])


def test_a_server_that_fails_loses_nothing_that_it_answered(serve, tmp_path: Path):
    server = serve(lambda number: (200, "red") if number < 7 else (401, ""))
    layouts.vqav2(tmp_path / "data")
    task = load_task("vqav2", limit=6, seed=0, data=str(tmp_path / "data"), form="chat")
    with pytest.raises(ValueError, match="answered 401"):
        evaluate(server.model(), [task], settings=Settings(tmp_path / "eval"), shots=(1,))
    kept = tmp_path / "eval" / "replies" / "vqav2-1shot.jsonl"
    assert kept.read_text().count('"text": "red"') == 7
    server.answer = lambda number: (200, "red")
    before = len(server.bodies)
    evaluate(server.model(), [task], settings=Settings(tmp_path / "eval"), shots=(1,))
    assert len(server.bodies) - before == kept.read_text().count("\n") - 7 > 0


def test_a_server_that_refuses_all_stops_the_call(serve, tmp_path: Path):
    server = serve(lambda number: (400, ""))
    layouts.vqav2(tmp_path / "data")
    task = load_task("vqav2", limit=6, seed=0, data=str(tmp_path / "data"), form="chat")
    with pytest.raises(ValueError, match=r"served at .* answered none of 8 requests: refused: .* answered 400"):
        evaluate(server.model(), [task], settings=Settings(tmp_path / "eval"), shots=(1,))


def test_the_longest_answer_can_be_given(tmp_path: Path):
    task = a_task()
    lengths = []

    class Listens(Echo):
        def generate(self, requests, *, done):
            lengths.extend(request.max_tokens for request in requests)
            return super().generate(requests, done=done)

    for tokens in (0, 64):
        settings = Settings(tmp_path, protocol=Protocol(max_tokens=tokens))
        score = evaluate(Listens(), [task], settings=settings, shots=(0,)).scores[-1]
    assert set(lengths) == {32, 64}
    assert (score.name, score.max_tokens) == ("made-0shot-tokens64", 64)


class Slow(Echo):
    """Notes each request in a file before it replies."""

    def __init__(self, log: Path):
        super().__init__()
        self.log = log

    def generate(self, requests, *, done):
        for number, request in enumerate(requests):
            with self.log.open("a") as log:
                log.write(prompt_hash(request.prompt) + "\n")
            time.sleep(0.002)
            super().generate([request], done=lambda _, reply, number=number: done(number, reply))


def call(folder: Path, log: Path) -> None:
    evaluate(Slow(log), [a_task()], settings=Settings(folder / "eval", trials=4), shots=(0, 1, 2, 3))


def killed_calls(folder: Path, moments: list[float]) -> list[str]:
    """All requests of calls of which one is killed at each moment, in seconds, and the last one comes to its end."""
    logs = []
    for moment in [*moments, None]:
        logs.append(folder / f"asked-{len(logs)}")
        process = multiprocessing.get_context("fork").Process(target=call, args=(folder, logs[-1]))
        process.start()
        process.join(moment)
        process.kill()
        process.join()
        assert process.exitcode == 0 or (process.exitcode == -signal.SIGKILL and moment is not None)
    return [request for log in logs if log.is_file() for request in log.read_text().split()]


def check_killed(folder: Path, moments: list[float]) -> None:
    for name in ("whole", "cut"):
        (folder / name).mkdir()
    whole, cut = killed_calls(folder / "whole", []), killed_calls(folder / "cut", moments)
    files = sorted(path.name for path in (folder / "whole" / "eval").glob("*.json*"))
    assert len(files) == 1 + 1 + 3 * 4
    for name in files:
        assert (folder / "cut" / "eval" / name).read_bytes() == (folder / "whole" / "eval" / name).read_bytes()
    assert set(cut) == set(whole)
    assert len(whole) <= len(cut) <= len(whole) + len(moments)  # one is in flight


def test_an_evaluation_that_was_killed_is_continued(tmp_path: Path):
    check_killed(tmp_path, [0.05, 0.2])


@pytest.mark.nightly
def test_ten_kills_at_random_moments_change_no_answer(tmp_path: Path):
    drawn = random.Random(0)
    for attempt in range(10):
        (tmp_path / str(attempt)).mkdir()
        check_killed(tmp_path / str(attempt), [drawn.uniform(0, 0.06) for _ in range(10)])
