"""OK-VQA, validation, by VQA accuracy on the original answers.

OpenFlamingo stems answers and references with WordNet; here neither is stemmed.
"""

from mm1.eval.data.examples import Columns, people
from mm1.eval.data.original_releases import vqa_files
from mm1.eval.data.published import Published, Source
from mm1.eval.fewshot import Scoring
from mm1.eval.metrics.vqa import vqa_accuracy, vqa_accuracy_evalai, vqa_accuracy_official

task = Published(
    name="okvqa",
    kind="vqa",
    source=Source(
        paper="https://arxiv.org/abs/1906.00067",
        hub="lmms-lab-encoder/OK-VQA",
        queries=("val2014", "validation"),
        shots=("train",),
        original=vqa_files(
            "OpenEnded_mscoco_{part}_questions.json", "mscoco_{part}_annotations.json", answer="raw_answer"
        ),
    ),
    columns=Columns(answers=people),
    scoring=Scoring(vqa_accuracy, by_rules={"official": vqa_accuracy_official, "lmms-eval": vqa_accuracy_evalai}),
)
