"""easy-VQA in MM1's form for models that were not fine-tuned: `{IMAGE} Question: ... Short answer:`."""

from dataclasses import replace

from mm1.eval.fewshot import VQA_STOPS, Task, ask_vqa, clean_vqa
from mm1.eval.tasks import easy_vqa


def task(limit: int, *, seed: int, queries: str = "sample:vqa-test", pool: str = "sample:vqa-train") -> Task:
    """The same questions, images and shots as `easy_vqa`, in the plain form."""
    chat = easy_vqa.task(limit, seed=seed, queries=queries, pool=pool)
    style = replace(chat.style, ask=ask_vqa, form="plain", stops=VQA_STOPS, clean=clean_vqa)
    return replace(chat, name="easy_vqa_plain", style=style)
