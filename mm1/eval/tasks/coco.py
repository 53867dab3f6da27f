"""COCO captions on Karpathy's test split, by CIDEr; shots come from train and restval."""

from mm1.eval.data.examples import Columns
from mm1.eval.data.original_releases import coco_captions, first, karpathy
from mm1.eval.data.published import Published, Source
from mm1.eval.fewshot import Scoring
from mm1.eval.metrics.captions import cider, cider_within

task = Published(
    name="coco",
    kind="caption",
    source=Source(
        paper="https://arxiv.org/abs/1504.00325; splits: https://arxiv.org/abs/1412.2306",
        hub="dataset_coco.json beside train2014 and val2014",
        queries=("test",),
        shots=("train",),
        training=("train2014",),
        original=first(
            karpathy("dataset_coco.json", folders=("val2014", "train2014")),
            coco_captions("image_info_{short}.json", folders=(), name="img_id", captions="caption"),  # test2014
        ),
    ),
    columns=Columns(id="img_id", question="", answers="caption"),
    scoring=Scoring(cider, within=cider_within),
)
