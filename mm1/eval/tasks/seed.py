"""SEED-Bench, the questions about single pictures (SEED-I). The paper takes `--scoring loglikelihood`."""

from mm1.eval.data.original_releases import listed
from mm1.eval.data.published import Published
from mm1.eval.metrics.short_answers import same_word

task = Published(
    name="seed",
    source="https://arxiv.org/abs/2307.16125",
    hub="lmms-lab/SEED-Bench",
    queries=("test",),
    kind="choice",
    metric=same_word,
    image=lambda row: row["image"][0] if isinstance(row["image"], list) else row["image"],
    choices=lambda row: [row[f"choice_{letter}"] for letter in "abcd"],
    answers="answer",
    wanted=lambda row: row["data_type"] == "image",
    original=listed("SEED-Bench.json", key="questions", image="{data_id}", folders=("SEED-Bench-image",)),
)
