"""What `mm1 eval --list` shows: every task with its split, size, metric, source and licence."""

import importlib
import pkgutil
from dataclasses import dataclass

from rich.table import Table

from mm1.eval import tasks as task_folder
from mm1.eval.data.published import Published


@dataclass(frozen=True, slots=True)
class Facts:
    """The number of queries of the default split, and the licence of questions and answers; images have their own.

    `data` says what a task that is not published asks about; 0 queries are as many as the user has.
    """

    queries: int
    licence: str = "see its page"
    data: str = "the shipped sample"


FACTS = {
    "ai2d": Facts(3088, "CC BY-SA"),
    "aokvqa": Facts(1145, "Apache-2.0"),
    "captions": Facts(450, "see NOTICE"),
    "chartqa": Facts(2500, "GPL-3.0"),
    "coco": Facts(5000, "CC BY 4.0"),
    "docvqa": Facts(5349, "terms of rrc.cvc.uab.es"),
    "dvqa": Facts(580557, "CC BY-NC 4.0"),
    "easy_vqa": Facts(1000, "see NOTICE"),
    "easy_vqa_plain": Facts(1000, "see NOTICE"),
    "flickr30k": Facts(1000),
    "gqa": Facts(12578, "CC BY 4.0"),
    "infovqa": Facts(2801, "terms of rrc.cvc.uab.es"),
    "languages": Facts(456, "see NOTICE"),
    "llava_w": Facts(60),
    "mathvista": Facts(1000, "CC BY-SA 4.0"),
    "mm_vet": Facts(218),
    "mmbench": Facts(1164),
    "mme": Facts(2374),
    "mmmu": Facts(900, "Apache-2.0"),
    "nocaps": Facts(4500, "CC BY 2.0"),
    "ocrvqa": Facts(100032),
    "okvqa": Facts(5046),
    "pope": Facts(9000, "MIT"),
    "realworldqa": Facts(765, "CC BY-ND 4.0"),
    "scienceqa": Facts(2017, "CC BY-NC-SA 4.0"),
    "seed": Facts(14233, "CC BY-NC 4.0"),
    "textcaps": Facts(3166, "CC BY 4.0"),
    "textvqa": Facts(5000, "CC BY 4.0"),
    "transcription": Facts(0, "of the text", data="pages of `mm1 prepare rendered_text`"),
    "vizwiz": Facts(4319, "CC BY 4.0"),
    "vqav2": Facts(214354, "CC BY 4.0"),
}
"""As the papers and pages of the data sets say; MMBench's questions are asked in all their rotations."""


def task_table() -> Table:
    """All tasks for a terminal."""
    table = Table(title="tasks of mm1 eval --tasks", title_justify="left", caption_justify="left")
    table.caption = "without --data, data are fetched from the hub: how much is said before; text is MM1's text suite"
    for name in ("task", "split", "queries", "metric", "data", "licence"):
        table.add_column(name, justify="right" if name == "queries" else "left", overflow="fold")
    for module in sorted(one.name for one in pkgutil.iter_modules(task_folder.__path__)):
        task = importlib.import_module(f"{task_folder.__name__}.{module}").task
        facts = FACTS[module]
        split, metric, data = "test", "its own", facts.data
        if isinstance(task, Published):
            split, data = task.source.queries[0], task.source.hub
            metric = "judge" if task.scoring.judge is not None else task.scoring.metric.__name__
        table.add_row(module, split, f"{facts.queries:,}" if facts.queries else "", metric, data, facts.licence)
    return table
