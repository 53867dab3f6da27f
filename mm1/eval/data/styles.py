"""How questions are asked and answers end, under the protocol of each source. The table stands in docs/evaluate.md.

default       as `official`, but VQA answers are normalised as OpenFlamingo does, whose evaluation MM1 follows
mm1           MM1, section 3.1 and appendix (https://arxiv.org/abs/2403.09611), where the paper says; else `official`
official      the benchmark's own rules; the prompts of models that continue a text are MM1's, those of fine-tuned
              models LLaVA-1.5's (https://arxiv.org/abs/2310.03744, appendix A)
openflamingo  open_flamingo/eval at 655f693 (https://github.com/mlfoundations/open_flamingo)
lmms-eval     lmms_eval/tasks of 0.7.3 (https://github.com/EvolvingLMMs-Lab/lmms-eval), its default prompts
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mm1.eval.fewshot import (
    CAPTION_STOPS,
    VQA_STOPS,
    Example,
    PromptStyle,
    ask_caption,
    ask_vqa,
    clean_vqa,
)
from mm1.eval.metrics.short_answers import LETTERS
from mm1.eval.shots import Rules

Kind = Literal["caption", "vqa", "choice", "free"]
Form = Literal["plain", "chat"]

FEW_SHOT_VQA = ("vqav2", "okvqa", "textvqa", "vizwiz")
"""The VQA sets of MM1's and OpenFlamingo's few-shot tables."""

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
ONE_CAPTION = "Provide a one-sentence caption for the provided image."


def options(example: Example) -> str:
    """The choices with their letters, one per line; an empty choice has no line, and the others keep their letters."""
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, example.choices, strict=False) if choice)


def ask_choice_plain(example: Example) -> str:
    """The question with its choices, for a model that continues a text."""
    return f" Question: {example.question}\n{options(example)}\nAnswer:" if example.choices else ask_vqa(example)


def ask_choice_chat(example: Example) -> str:
    """The question with its choices and the request for a letter; without choices a request for a short answer."""
    return f"{example.question}\n{options(example)}{LETTER}" if example.choices else ask_short(example)


def ask_short(example: Example) -> str:
    """The question and the request for a short answer."""
    return f"{example.question}{SHORT}"


@dataclass(frozen=True, slots=True)
class Styles:
    """How questions of one kind are asked, by form; the first form is the default."""

    forms: dict[Form, PromptStyle]


OFFICIAL: dict[Kind, Styles] = {
    "caption": Styles(
        {
            "plain": PromptStyle(ask_caption, "plain", CAPTION_STOPS, 32),
            "chat": PromptStyle(lambda _: ONE_CAPTION, "chat", (), 32),
        }
    ),
    "vqa": Styles(
        {
            "plain": PromptStyle(ask_vqa, "plain", ("\n", " Question:"), 32),
            "chat": PromptStyle(ask_short, "chat", (), 32),
        }
    ),
    "choice": Styles(
        {
            "chat": PromptStyle(ask_choice_chat, "chat", (), 32),
            "plain": PromptStyle(ask_choice_plain, "plain", ("\n",), 32),
        }
    ),
    "free": Styles(
        {
            "chat": PromptStyle(lambda example: example.question, "chat", (), 512),
            "plain": PromptStyle(ask_vqa, "plain", ("\nQuestion:",), 512),
        }
    ),
}

MM1_VQA = Styles(
    {
        "plain": PromptStyle(ask_vqa, "plain", VQA_STOPS, 16, clean_vqa),
        "chat": PromptStyle(ask_short, "chat", (), 16),
    }
)


def _clean_flamingo_caption(written: str) -> str:
    return written.split("Output", 1)[0].replace('"', "").strip()


FLAMINGO_CAPTION = Styles({"plain": PromptStyle(lambda _: "Output:", "plain", ("\n",), 20, _clean_flamingo_caption)})
FLAMINGO_VQA = Styles(
    {
        "plain": PromptStyle(
            lambda example: f"Question:{example.question.strip()} Short answer:", "plain", ("\n",), 5, clean_vqa
        )
    }
)


def _ask_mmmu(example: Example) -> str:
    return f"{example.question}\n{options(example)}\n{LETTER}" if example.choices else f"{example.question}\n{SHORT}"


def _ask_mmbench(example: Example) -> str:
    question = " ".join(example.question.rsplit("\n", 1))  # a hint stands before the question
    return f"{question} There are several options:\n{options(example)}{LETTER}"


LMMS_STOPS = ("ASSISTANT:",)
LMMS_VQA: dict[str, tuple[Callable[[Example], str], int]] = {
    "vqav2": (ask_short, 16),
    "gqa": (ask_short, 16),
    "docvqa": (ask_short, 32),
    "infovqa": (ask_short, 32),
    "chartqa": (lambda example: f"{example.question}\nAnswer the question with a single word.", 16),
    "textvqa": (lambda example: f"{example.question.capitalize()}{SHORT}", 1024),
    "okvqa": (lambda example: f"{example.question}{UNANSWERABLE}{SHORT}", 1024),
    "vizwiz": (lambda example: f"{example.question.capitalize()}{UNANSWERABLE}{SHORT}", 1024),
}
LMMS_CHOICE: dict[str, tuple[Callable[[Example], str], int]] = {
    "ai2d": (ask_choice_chat, 16),
    "scienceqa": (ask_choice_chat, 16),
    "seed": (ask_choice_chat, 1024),
    "mmbench": (_ask_mmbench, 1024),
    "mmmu": (_ask_mmmu, 128),
    "mme": (lambda example: f"{example.question.replace(' Please answer yes or no.', '')}{SHORT}", 16),
    "pope": (ask_short, 128),
}
"""The prompts and the longest answers, in tokens; those of 1,024 also end at `LMMS_STOPS`. TextVQA, OK-VQA, VizWiz and
SEED-Bench leave the longest answer to the model.
"""


SEARCH: dict[Rules, tuple[int, int]] = {"openflamingo": (3, 2)}
"""Beams when generating, and examples without images before the query at zero shots."""


def styles_of(task: str, kind: Kind, *, rules: Rules) -> Styles:
    """How a task is asked under the rules of a source.

    Raises:
        ValueError: the source has no rules for the task.
    """
    styles = SOURCES[rules](task, kind)
    if styles is None:
        raise ValueError(f"--protocol {rules} has no rules for task {task}; take default or official")
    return styles


def _mm1(task: str, kind: Kind) -> Styles:
    return MM1_VQA if task in FEW_SHOT_VQA else OFFICIAL[kind]


def _openflamingo(task: str, kind: Kind) -> Styles | None:
    return FLAMINGO_CAPTION if kind == "caption" else FLAMINGO_VQA if task in FEW_SHOT_VQA else None


def _lmms_eval(task: str, kind: Kind) -> Styles | None:
    if kind == "caption":
        text = "Describe the image briefly." if task == "coco" else ONE_CAPTION
        return Styles({"chat": PromptStyle(lambda _: text, "chat", (), 64)})
    if task not in LMMS_VQA | LMMS_CHOICE:
        return None
    ask, max_tokens = (LMMS_VQA | LMMS_CHOICE)[task]
    return Styles({"chat": PromptStyle(ask, "chat", LMMS_STOPS if max_tokens == 1024 else (), max_tokens)})


SOURCES: dict[Rules, Callable[[str, Kind], Styles | None]] = {
    "default": lambda task, kind: OFFICIAL[kind],
    "mm1": _mm1,
    "openflamingo": _openflamingo,
    "lmms-eval": _lmms_eval,
    "official": lambda task, kind: OFFICIAL[kind],
}
