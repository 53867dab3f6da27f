"""Judges: replies are read strictly, asked for again once, then counted as unread; files may hold the question."""

import json
import shutil
from pathlib import Path

import layouts_tuned
import numpy as np
import pytest
from test_real_rows import Says, run
from test_real_rows import mathvista as mathvista_rows
from typer.testing import CliRunner

from mm1.__main__ import app
from mm1.document import Image
from mm1.eval.comparison import compare
from mm1.eval.fewshot import Example, Judged, JudgeRule
from mm1.eval.harness import evaluate, load_task
from mm1.eval.judge import Judge, JudgePrompt
from mm1.eval.metrics.judging import share, two_scores
from mm1.eval.model import Reply, ignore
from mm1.eval.results import TaskScore, read_results
from mm1.eval.task_evaluation import Settings
from mm1.eval.tasks import mathvista


class Server:
    """A judge's server that replies by turns to a first request, and by `again` to a second one."""

    name = "a judge"

    def __init__(self, *replies: str, again: str = ""):
        self.replies, self.again, self.conversations = replies, again, []

    def chat(self, conversation, *, max_tokens):
        self.conversations.append(conversation)
        firsts = sum(len(one) == 1 for one in self.conversations)
        return self.again if len(conversation) > 1 else self.replies[(firsts - 1) % len(self.replies)]


def judged(folder: Path, server: Server, *, name: str = "mm_vet", prompt: JudgePrompt | None = None) -> TaskScore:
    (layouts_tuned.mm_vet if name == "mm_vet" else layouts_tuned.llava_w)(folder / "data")
    settings = {"judge": Judge(server, folder / "eval", prompt=prompt)}
    return run(name, folder / "data", lambda query: f"an answer to {query.id}", settings=settings).scores[0]


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        *(("8 7", (8, 7)), ("8, 7.5", (8, 7.5)), ("8 7\nThe first is better.", (8, 7)), ("**8 7**", (8, 7))),
        *(("Answer 1: 8 Answer 2: 7", (8, 7)), ("Assistant 1: 8\nAssistant 2: 7", (8, 7)), ("8/10, 7/10", (8, 7))),
        *(("9/10 for the first, 7/10 for the second", (9, 7)), ("9/10 ... 7/10", (9, 7)), ("Scores: 8 7", (8, 7))),
        *(("8", None), ("8 7 6", None), ("80 70", None), ("Both are good.", None), ("1. 8 2. 7", None), ("", None)),
    ],
)
def test_two_scores_are_read_strictly(reply: str, scores: tuple[float, float] | None):
    if scores is None:
        with pytest.raises(ValueError, match="two numbers from 1 to 10"):
            two_scores(reply)
    else:
        assert two_scores(reply) == scores


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        *(("0.8", 0.8), ("1", 1), ("0.0", 0), ("Score: 0.8", 0.8), ("0.8 because it is near.", 0.8), ("**0.4**", 0.4)),
        *(("1/10", 0.1), ("8 out of 10", 0.8), ("0.5/1.0", 0.5), ("The score is 0.3.", 0.3)),
        *(("10", None), ("7", None), ("100%", None), ("0.5-0.6", None), ("1.5", None), ("good", None), ("", None)),
        *(
            ("0,8", None),
            ("0.4 to 0.6", None),
            ("0.5 or 0.6", None),
            ("0.8, 0.9", None),
            ("0.5 0.6", None),
            ("0.8\n1. It is near.", 0.8),
            ("0.8, as it is near", 0.8),
        ),
    ],
)
def test_a_share_is_read_strictly(reply: str, value: float | None):
    if value is None:
        with pytest.raises(ValueError, match=r"a number from 0.0 to 1.0"):
            share(reply)
    else:
        assert share(reply) == value


def test_a_reply_that_cannot_be_read_is_asked_for_again_once(tmp_path: Path):
    server = Server("7", again="0.4")
    score = judged(tmp_path, server)
    assert score.score.mean == pytest.approx(40)
    assert score.counted == {}
    _, second = [one for one in server.conversations if one[0] == server.conversations[0][0]]
    assert [turn["role"] for turn in second] == ["user", "assistant", "user"]
    assert "a number from 0.0 to 1.0 is expected; found '7'" in second[2]["content"]
    assert len({json.dumps(one) for one in server.conversations}) == len(server.conversations), "none is asked twice"
    requests = len(server.conversations)
    assert judged(tmp_path, server) == score
    assert len(server.conversations) == requests, "replies are kept"


def test_a_judge_takes_the_replies_that_another_rank_got_meanwhile(tmp_path: Path):
    server, query = Server("0.5"), Example("1", Image(b""), "What?", ("red",))
    ranks = [Judge(server, tmp_path) for _ in range(2)]
    rule = JudgeRule(lambda query, answer: f"How good is {answer}?", lambda reply: Judged(share(reply)))
    for answer, times in (("red", 1), ("blue", 2), ("red", 2)):
        assert [rank.score(rule, query, answer=answer).score for rank in ranks] == [0.5, 0.5]
        assert len(server.conversations) == times
    path = tmp_path / "judge.jsonl"
    path.write_bytes(path.read_bytes()[:-9])  # another rank is writing its last line
    assert Judge(server, tmp_path).score(rule, query, answer="red").score == 0.5
    assert len(server.conversations) == 2


def test_what_cannot_be_read_twice_is_counted_and_not_scored(tmp_path: Path):
    score = judged(tmp_path, Server("0.6", "good", again="good"))
    assert score.score.mean == pytest.approx(60)
    assert score.counted == {"unread by the judge": 3}
    path = tmp_path / "data" / "eval" / "mm_vet-0shot.jsonl"
    assert [json.loads(line)["score"] for line in path.read_text().splitlines()] == [0.6, None] * 3
    assert "unread" in (tmp_path / "data" / "eval" / "answers.html").read_text()
    with pytest.raises(ValueError, match="a judge gave no score that can be read to any of 6 answers"):
        judged(tmp_path / "none", Server("good", again="10"))


def test_two_answers_are_judged_by_the_ratio_of_their_scores(tmp_path: Path):
    assert judged(tmp_path, Server("Answer 1: 8 Answer 2: 7"), name="llava_w").score.mean == pytest.approx(87.5)


def test_llava_bench_divides_the_means_as_officially(tmp_path: Path):
    """As `summarize_gpt_review.py` of LLaVA: all second scores over all first ones, the unread left out."""
    pairs = [(8, 4), (9, 9), (5, 10), (1, 8), (10, 3)]
    server = Server(*(f"{first} {second}" for first, second in pairs), "good", again="good")
    score = judged(tmp_path, server, name="llava_w")
    first_mean, second_mean = np.mean(pairs, axis=0)
    assert score.score.mean == pytest.approx(100 * second_mean / first_mean)
    assert score.score.mean != pytest.approx(np.mean([100 * second / first for first, second in pairs]))
    assert score.score.low < score.score.mean < score.score.high
    assert score.totals["conv"]["score"] == pytest.approx(score.score.mean)
    assert read_results(tmp_path / "data" / "eval").scores[0] == score
    shutil.copytree(tmp_path / "data", tmp_path / "other")
    (compared,) = compare(tmp_path / "data", tmp_path / "other")
    assert (compared.ours, compared.theirs) == pytest.approx((score.score.mean, score.score.mean))
    assert compared.difference.mean == 0


def test_an_empty_answer_is_judged_where_the_other_one_counts_too(tmp_path: Path):
    layouts_tuned.llava_w(tmp_path)
    server = Server("8 1")
    (score,) = run("llava_w", tmp_path, lambda query: "", settings={"judge": Judge(server, tmp_path)}).scores
    assert score.score.mean == pytest.approx(12.5)


def test_a_refused_reply_scores_nothing_in_the_mean_and_in_the_parts(tmp_path: Path):
    class Filtered(Says):
        def generate(self, requests, *, done=ignore):
            replies = [Reply("fine"), *(Reply("", "content_filter: no") for _ in requests[1:])]
            for number, reply in enumerate(replies):
                done(number, reply)
            return replies

    layouts_tuned.llava_w(tmp_path)
    task = load_task("llava_w", limit=9, seed=0, data=str(tmp_path))
    settings = Settings(tmp_path / "eval", judge=Judge(Server("8 4"), tmp_path))
    (score,) = evaluate(Filtered({}), [task], settings=settings, shots=(0,)).scores
    of_parts = score.totals["conv"]
    assert score.score.mean == pytest.approx(50 / len(task.queries))
    assert (of_parts["score"], of_parts["blind"]) == pytest.approx((score.score.mean, score.blind.mean))
    assert (of_parts["majority"], of_parts["chance"]) == (50, 50)


def test_the_question_may_come_from_a_file_and_is_named(tmp_path: Path):
    own = judged(tmp_path / "own", Server("0.5"))
    path = tmp_path / "official.txt"
    path.write_text('Q {question} R {reference} P {answer} as {"json": 1}')
    server = Server("0.5")
    score = judged(tmp_path / "file", server, prompt=JudgePrompt.read(path))
    question = server.conversations[0][0]["content"]
    assert question == 'Q What? R a shape P an answer to v1_0 as {"json": 1}'
    assert own.judge_prompt == "mm1's"
    assert score.judge_prompt.startswith("official.txt, ")
    path.write_text("Q {question}")
    with pytest.raises(ValueError, match=r"official\.txt shows the judge no answer"):
        JudgePrompt.read(path)
    with pytest.raises(ValueError, match="can't be read"):
        JudgePrompt.read(tmp_path / "gone.txt")
    called = CliRunner().invoke(app, ["eval", "x", "--judge-prompt", str(path)])
    assert "--judge-prompt is the question to a judge about one task" in str(called.exception)


def test_a_task_that_needs_a_judge_says_so(tmp_path: Path):
    layouts_tuned.mm_vet(tmp_path)
    with pytest.raises(ValueError, match="is scored by a judge: give --judge"):
        run("mm_vet", tmp_path, lambda query: "x")


def test_a_judge_extracts_the_answers_of_mathvista(tmp_path: Path):
    mathvista_rows(tmp_path)
    text = "In the year 2014 the value was 6 units in 3 regions"
    says = {"1": text, "2": "<think>1 or 2?</think>1.5", "6": f"<think>Is it 5?</think>{text}"}
    server = Server("6")
    settings = {"judge": Judge(server, tmp_path / "eval")}
    (score,) = run("mathvista", tmp_path, lambda query: says.get(query.id, ""), settings=settings).scores
    assert score.score.mean == pytest.approx(30)
    assert (score.judge, score.judge_prompt, score.metric) == ("a judge", "mm1's", "same_text")
    questions = {one[0]["content"] for one in server.conversations}
    assert len(questions) == 2, "a number by itself needs no judge"
    assert all("Model response: In the year 2014" in question for question in questions)
    assert [mathvista.parse_extraction(reply) for reply in ("Answer: B", "14\n", "none")] == ["B", "14", ""]
