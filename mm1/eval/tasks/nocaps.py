"""NoCaps, validation, by CIDEr. It has no training split: shots come from validation too, as MM1 does."""

from mm1.eval.data.original_releases import coco_captions
from mm1.eval.data.published import Published
from mm1.eval.metrics.captions import cider

task = Published(
    name="nocaps",
    source="https://arxiv.org/abs/1812.08658",
    hub="lmms-lab/NoCaps",
    queries=("validation",),
    kind="caption",
    metric=cider,
    id="image_id",
    question="",
    answers="annotations_captions",
    original=coco_captions("nocaps_{short}_4500_captions.json", folders=("val", "images")),
)
