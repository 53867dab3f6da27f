"""The layers of the package: the one source of the import test and of the map in README.md and docs/design.md.

`python tests/layers.py` writes the map into both pages.
"""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Layer:
    """Packages and single files that import only from the layers below, and not from each other."""

    names: tuple[str, ...]
    does: str


# From the bottom up.
LAYERS = (
    Layer(("web", "tiling", "document", "disk", "config", "dist", "cluster", "scaling"), "what everything shares"),
    Layer(("model", "data"), "batch -> logits; documents -> batch"),
    Layer(("objectives",), "what is learned: loss, heads, units"),
    Layer(("hf",), "names and configs, theirs and ours"),
    Layer(("generate", "checkpoint"), "inference engine; weights on disk"),
    Layer(("recipes", "exchange"), "named runs; published models in, runs out"),
    Layer(("prepare", "train", "eval", "serve"), "one verb each"),
    Layer(("budget", "report", "doctor"), "what a run will take; what it did; what is here"),
    Layer(("demo", "ablate"), "many runs"),
    Layer(("__main__",), "the command line"),
)
LAYER = {name: number for number, layer in enumerate(LAYERS) for name in layer.names}

# The files of a package in import order: each uses only those before it. Files not listed may stand anywhere, as long
# as no circle appears.
ORDER = {
    "config": ("base", "renamed", "sample", "options", "model", "run", "ablation"),
    "data": (
        *(
            "store",
            "chat_format",
            "chat_template",
            "tokenizer",
            "image",
            "augment",
            "preview",
            "tokenized",
            "encode",
            "pack",
            "plan",
        ),
        *("recorded", "index", "mixture", "microbatches", "loader"),
    ),
    "model": (
        *(
            "rotary",
            "layers",
            "lora",
            "vision",
            "encoders",
            "connector",
            "moe",
            "softcap",
            "attention_cpu",
            "attention",
            "cache",
            "decoder",
            "mllm",
        ),
        "sizes",
    ),
    "objectives": (
        "loss",
        "weighting",
        "next_token",
        "draws",
        "contrast",
        "contrastive",
        "autoregressive_pixels",
        "index",
    ),
    "generate": (
        *(
            "threads",
            "prompt",
            "sampling",
            "decode_step",
            "prefix_index",
            "prompt_content",
            "prefix_cache",
            "prompt_lookup",
            "request",
            "admission",
        ),
        *("engine", "serving", "beam", "document_prompt", "writer"),
    ),
    "hf": (
        "weight_files",
        "names",
        "layouts",
        "vision",
        "encoder",
        "vocabulary",
        "decoders",
        "decoder_config",
        "decoder_state",
        "files",
        "llava",
        "idefics3",
        "internvl",
        "families",
        "adapter",
        "shards",
    ),
    "train": (
        *(
            "inputs",
            "parameters",
            "adapters",
            "optim",
            "schedule",
            "compilation",
            "float8",
            "activation_checkpointing",
            "expert_parallel",
            "parallel",
        ),
        *("coordinator", "trackers", "log", "meter", "guard", "health", "profile", "loop"),
        *("starts", "run", "continued"),
    ),
    "budget": (
        *("objectives", "simulate", "hardware", "memory_table", "parallel_layout", "sharding", "contrast", "planner"),
        *("report",),
    ),
    "eval": (
        *(
            "metrics",
            "fewshot",
            "blind",
            "baselines",
            "shots",
            "data",
            "models",
            "caption_loss",
            "answer_likelihood",
            "judge",
            "results",
        ),
        *("tasks", "index", "training_chats", "task_evaluation", "harness"),
        *("text_suite", "answers_page", "ray_workers", "encoders", "command", "lmms_plugin"),
    ),
    "report": (
        "templates",
        "drawing",
        "sequence",
        "figures",
        "progress",
        "findings",
        "samples",
        "mix",
        "summary",
        "page",
    ),
    "ablate": (
        *("rate_search", "plan", "costs", "measures", "runner", "intervals", "comparison", "drawing", "page", "sweep"),
        *("command", "law", "law_record", "law_figure", "law_command"),
    ),
}

PAGES = ("README.md", "docs/design.md")
BEGIN, END = "<!-- layers: written by tests/layers.py -->\n", "<!-- end of layers -->\n"


def drawing() -> str:
    """The layers as text, the highest first."""
    rows = []
    for number, layer in reversed(list(enumerate(LAYERS, start=1))):
        names = "  ".join(shown(name) for name in layer.names)
        rows.append((f"{number:2}  {names}", layer.does))
    width = max(len(row) for row, _ in rows)
    return "\n".join(f"{row:{width}}   {does}" for row, does in rows) + "\n"


def shown(name: str) -> str:
    """`name.py` for a file, `name/` for a package."""
    return f"{name}.py" if (ROOT / "mm1" / f"{name}.py").is_file() else f"{name}/"


def with_map(page: str) -> str:
    """The text of a page with today's map between its two comments."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}```\n{drawing()}```\n{END}{after}"


if __name__ == "__main__":
    for name in PAGES:
        path = ROOT / name
        path.write_text(with_map(path.read_text()))
