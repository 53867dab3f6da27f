"""OK-VQA, validation, by VQA accuracy on the answers as people wrote them.

OpenFlamingo stems answers and references with WordNet; here neither is stemmed.
"""

from mm1.eval.data.original_releases import vqa_files
from mm1.eval.data.published import Published, people
from mm1.eval.metrics.vqa import vqa_accuracy

task = Published(
    name="okvqa",
    source="https://arxiv.org/abs/1906.00067",
    hub="lmms-lab/OK-VQA",
    queries=("val2014", "validation"),
    shots=("train",),
    kind="vqa",
    metric=vqa_accuracy,
    answers=people,
    original=vqa_files("OpenEnded_mscoco_{part}_questions.json", "mscoco_{part}_annotations.json", answer="raw_answer"),
)
