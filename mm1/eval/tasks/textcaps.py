"""TextCaps, validation, by CIDEr: captions of images with text."""

from mm1.eval.data.examples import Columns
from mm1.eval.data.original_releases import grouped, listed
from mm1.eval.data.published import Published, Source
from mm1.eval.fewshot import Scoring
from mm1.eval.metrics.captions import cider, cider_within

task = Published(
    name="textcaps",
    kind="caption",
    source=Source(
        paper="https://arxiv.org/abs/2003.12462",
        hub="lmms-lab-encoder/TextCaps",
        queries=("val", "validation"),
        shots=("train",),
        original=grouped(
            listed("TextCaps_0.1_{short}.json", key="data", image="{image_id}.jpg", folders=("train_images",)),
            by="image_id",
            gather="caption_str",
        ),
    ),
    columns=Columns(id="image_id", question="", answers="caption_str"),
    scoring=Scoring(cider, within=cider_within),
)
