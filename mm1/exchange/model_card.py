"""The README.md of an export: what the model is, what it learned from, how it scores, how it is used.

Its head is the metadata that the hub reads (https://huggingface.co/docs/hub/model-cards).
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from mm1.config.run import RunConfig
from mm1.exchange.description import architecture, origin_of
from mm1.hf.vision import is_aim

FILE = "README.md"

_PIPELINES = {"vision": "image-feature-extraction", "decoder": "text-generation", "model": "image-text-to-text"}
_KINDS = {"vision": "An image encoder", "decoder": "A language model", "model": "A multimodal language model"}
_USE = {
    "vision": """from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("{name}"{trust})
processor = AutoImageProcessor.from_pretrained("{name}"{trust})""",
    "aim": """# its files have the names and the config of github.com/apple/ml-aim: a trunk without a classifier
from mm1.hf.encoder import read_encoder
from mm1.model.vision import Vision

config, weights = read_encoder("{name}")
model = Vision(config)
model.load_state_dict(weights)""",
    "decoder": """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}"{trust})
tokenizer = AutoTokenizer.from_pretrained("{name}"{trust})""",
    "model": """from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{name}"{trust})
processor = AutoProcessor.from_pretrained("{name}"{trust})""",
}


def model_card(folder: Path, run: RunConfig, part: str, *, native: bool, license_id: str) -> str:
    """The card of the export of the run in `folder`; an export that was imported keeps the card it had.

    `license_id` is an identifier of the hub, such as apache-2.0; empty: the card says that none is given.
    """
    kept = folder / FILE
    if kept.is_file():
        return kept.read_text()
    name = run.recipe or folder.name
    use = "aim" if part == "vision" and is_aim(run.model.vision) else part
    settings: dict[str, Any] = {
        "library_name": "mm1" if use == "aim" else "transformers",
        "pipeline_tag": _PIPELINES[part],
        "license": license_id or "unknown",
        "base_model": origin_of(folder).get("model"),
        "tags": ["mm1"],
    }
    metadata = ModelCardData(**settings, ignore_metadata_errors=False).to_yaml()
    trust = "" if native else ", trust_remote_code=True"
    parts = [
        f"---\n{metadata}\n---\n\n# {name}\n",
        f"{_KINDS[part]}, trained with mm1 for {run.steps:,} steps of {run.batch_size} sequences.\n",
        "## Architecture\n",
        "\n".join(f"- {label}: {text}" for label, text in architecture(run.model, part)) + "\n",
        "## Data\n",
        _data(run),
        "## Evaluation\n",
        _evaluation(folder),
        "## Use\n",
        f"```py\n{_USE[use].format(name=name, trust=trust)}\n```\n",
        "## License\n",
        f"{license_id}\n" if license_id else "None is given; the licenses of the data and of a base model apply.\n",
    ]
    return "\n".join(parts)


def _data(run: RunConfig) -> str:
    if not run.data.sources:
        return "The weights are as they were imported.\n"
    rows = [f"| {name} | {Path(source.store).name} | {source.share} |" for name, source in run.data.sources.items()]
    starts = [f"It started from {part} of `{Path(start).name}`." for part, start in run.start_from.items()]
    return "\n".join(["| source | store | share |", "|---|---|---|", *rows, "", *starts]) + "\n"


def _evaluation(folder: Path) -> str:
    """A table of the scores in the run's `eval/summary.json`."""
    path = folder / "eval" / "summary.json"
    cells = json.loads(path.read_text())["cells"] if path.is_file() else []
    if not cells:
        return "Not evaluated.\n"
    lines = ["| task | shots | queries | score [95 %] | without the image |", "|---|---|---|---|---|"]
    for cell in cells:
        score, blind = cell["score"], cell["blind"]["mean"]
        shown = f"{score['mean']:.1f} [{score['low']:.1f}, {score['high']:.1f}]"
        lines.append(f"| {cell['task']} | {cell['shots']} | {cell['queries']:,} | {shown} | {blind:.1f} |")
    return "\n".join(lines) + "\n"
