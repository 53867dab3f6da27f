"""COCO captions of Karpathy's test split, shots from train and restval, by CIDEr."""

from mm1.eval.data.original_releases import karpathy
from mm1.eval.data.published import Published
from mm1.eval.metrics.captions import cider

task = Published(
    name="coco",
    source="https://arxiv.org/abs/1504.00325; splits: https://arxiv.org/abs/1412.2306",
    hub="dataset_coco.json beside train2014 and val2014",
    queries=("test",),
    shots=("train",),
    kind="caption",
    metric=cider,
    id="img_id",
    question="",
    answers="caption",
    original=karpathy("dataset_coco.json", folders=("val2014", "train2014")),
)
