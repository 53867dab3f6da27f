"""Flickr30k captions on Karpathy's test split, by CIDEr."""

from mm1.eval.data.examples import Columns
from mm1.eval.data.original_releases import karpathy
from mm1.eval.data.published import Published, Source
from mm1.eval.fewshot import Scoring
from mm1.eval.metrics.captions import cider, cider_within

task = Published(
    name="flickr30k",
    kind="caption",
    source=Source(
        paper="https://aclanthology.org/Q14-1006/",
        hub="lmms-lab-encoder/flickr30k",
        queries=("test",),
        shots=("train",),
        original=karpathy("dataset_flickr30k.json", folders=("flickr30k-images", "flickr30k_images")),
    ),
    columns=Columns(id="img_id", question="", answers="caption"),
    scoring=Scoring(cider, within=cider_within),
)
