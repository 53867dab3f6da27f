"""SEED-Bench, the questions about single images (SEED-I). The paper uses `--scoring loglikelihood`."""

from mm1.eval.data.examples import Columns
from mm1.eval.data.original_releases import listed
from mm1.eval.data.published import Published, Source
from mm1.eval.fewshot import Scoring
from mm1.eval.metrics.short_answers import same_word

task = Published(
    name="seed",
    kind="choice",
    source=Source(
        paper="https://arxiv.org/abs/2307.16125",
        hub="lmms-lab-encoder/SEED-Bench",
        queries=("test",),
        original=listed("SEED-Bench.json", key="questions", image="{data_id}", folders=("SEED-Bench-image",)),
        belongs=lambda row: row["data_type"] == "image",
    ),
    columns=Columns(
        image=lambda row: row["image"][0] if isinstance(row["image"], list) else row["image"],
        answers="answer",
        choices=lambda row: [row[f"choice_{letter}"] for letter in "abcd"],
    ),
    scoring=Scoring(same_word),
)
