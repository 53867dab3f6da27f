"""Flickr30k captions of Karpathy's test split, by CIDEr."""

from mm1.eval.data.original_releases import karpathy
from mm1.eval.data.published import Published
from mm1.eval.metrics.captions import cider

task = Published(
    name="flickr30k",
    source="https://aclanthology.org/Q14-1006/",
    hub="lmms-lab/flickr30k",
    queries=("test",),
    shots=("train",),
    kind="caption",
    metric=cider,
    id="img_id",
    question="",
    answers="caption",
    original=karpathy("dataset_flickr30k.json", folders=("flickr30k-images", "flickr30k_images")),
)
