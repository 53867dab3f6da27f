"""MMBench, English dev. Each question is asked once; the paper's CircularEval asks it with rotated choices."""

from mm1.eval.data.examples import Columns, lettered
from mm1.eval.data.original_releases import tsv
from mm1.eval.data.published import Published, Source
from mm1.eval.data.rows import Row
from mm1.eval.fewshot import Scoring
from mm1.eval.metrics.short_answers import same_word


def question_with_hint(row: Row) -> str:
    """The question, after its hint if there is one."""
    hint = row.get("hint")
    return row["question"] if not hint or hint == "nan" else f"{hint}\n{row['question']}"


task = Published(
    name="mmbench",
    kind="choice",
    source=Source(
        paper="https://arxiv.org/abs/2307.06281",
        hub="lmms-lab/MMBench",
        queries=("dev",),
        folder="en",
        original=tsv("[mM][mM][bB]*_{split}_[eE][nN]*.tsv", "[mM][mM][bB]*_{split}*.tsv"),
    ),
    columns=Columns(id="index", question=question_with_hint, answers="answer", choices=lettered),
    scoring=Scoring(same_word),
)
