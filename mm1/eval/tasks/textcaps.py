"""TextCaps, validation: captions that read the text in a picture, by CIDEr."""

from mm1.eval.data.original_releases import grouped, listed
from mm1.eval.data.published import Published
from mm1.eval.metrics.captions import cider

task = Published(
    name="textcaps",
    source="https://arxiv.org/abs/2003.12462",
    hub="lmms-lab/TextCaps",
    queries=("val", "validation"),
    shots=("train",),
    kind="caption",
    metric=cider,
    id="image_id",
    question="",
    answers="caption_str",
    original=grouped(
        listed("TextCaps_0.1_{short}.json", key="data", image="{image_id}.jpg", folders=("train_images",)),
        by="image_id",
        gather="caption_str",
    ),
)
