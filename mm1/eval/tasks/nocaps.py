"""NoCaps, validation, by CIDEr. There is no training split: shots come from validation, as in MM1."""

from mm1.eval.data.examples import Columns
from mm1.eval.data.original_releases import coco_captions, first
from mm1.eval.data.published import Published, Source
from mm1.eval.fewshot import Scoring
from mm1.eval.metrics.captions import cider, cider_within

task = Published(
    name="nocaps",
    kind="caption",
    source=Source(
        paper="https://arxiv.org/abs/1812.08658",
        hub="lmms-lab-encoder/NoCaps",
        queries=("validation",),
        original=first(
            coco_captions("nocaps_{short}_4500_captions.json", folders=("val", "images")),
            coco_captions("nocaps_{short}_image_info.json", folders=("images",)),
        ),
    ),
    columns=Columns(id="image_id", question="", answers="annotations_captions"),
    scoring=Scoring(cider, within=cider_within),
)
