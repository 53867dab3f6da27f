"""The demo's multimodal stage without interleaved pages: captions take their sequences.

    mm1 train benchmarks/without_pages.py --to runs/without_pages
    mm1 eval runs/without_pages --tasks languages,captions --shots 0,8 --limit 400

It starts from the encoder and the language model of `mm1 demo`. docs/measured.md has the scores beside the demo's.
"""

from mm1.config.run import RunConfig
from mm1.recipes.tiny import tiny


def without_pages(root: str = "runs/demo") -> RunConfig:
    """The stage `tiny` with captions and text alone, 18:2 in place of 9:9:2."""
    run = tiny(root)
    pages = [name for name in run.data.sources if name.startswith("interleaved/")]
    run.data.sources["captions"].share += sum(run.data.sources.pop(name).share for name in pages)
    return run
