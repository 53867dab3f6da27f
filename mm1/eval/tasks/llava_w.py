"""LLaVA-Bench (in the wild): a judge compares the answer with GPT-4's, given a description of the image.

The score is the mean of the answers' scores divided by the mean of GPT-4's, of all questions and of each category, as
in https://github.com/haotian-liu/LLaVA/blob/main/llava/eval/summarize_gpt_review.py.

The question to the judge is ours: scores can only be compared with others from this file and the same judge.
"""

from mm1.eval.data.examples import Columns
from mm1.eval.data.original_releases import llava_bench
from mm1.eval.data.published import Published, Source
from mm1.eval.fewshot import Example, Judged, JudgeRule, Scoring
from mm1.eval.metrics.judging import two_scores
from mm1.eval.metrics.short_answers import same_word


def ask_judge(query: Example, answer: str) -> str:
    """The question to the judge: both answers and the description; each answer gets 1 to 10."""
    return (
        f"A picture is described so: {query.metadata['caption']}\n\nQuestion about it: {query.question}\n\n"
        f"Answer 1: {query.metadata['gpt_answer']}\n\nAnswer 2: {answer}\n\n"
        "How helpful, relevant, correct and detailed is each answer? Give each a number from 1 to 10. "
        "Write the two numbers on the first line with a space between, then one sentence why."
    )


def parse_judge(reply: str) -> Judged:
    """The second score divided by the first, which is its weight: so the mean is one of sums, divided by another."""
    reference, ours = two_scores(reply)
    if reference < 1:
        raise ValueError(f"the first score must be from 1 to 10; found {reply[:80]!r}")
    return Judged(ours / reference, reference)


task = Published(
    name="llava_w",
    kind="free",
    source=Source(
        paper="https://arxiv.org/abs/2304.08485",
        hub="lmms-lab-encoder/llava-bench-in-the-wild",
        queries=("train", "test"),
        original=llava_bench,
    ),
    columns=Columns(answers="gpt_answer", metadata=("caption", "gpt_answer", "category")),
    scoring=Scoring(
        same_word,
        judge=JudgeRule(ask_judge, parse_judge, asks_always=True),
        part=lambda query: query.metadata["category"],
    ),
)
