"""The table of vLLM in docs/weights.md: what it writes greedily with an export, compared with what mm1 writes.

`python tests/with_vllm.py VLLM_PYTHON RUN...` exports each run, asks both the same 40 prompts and writes the table.
Runs that see pictures are asked about the sample's, each in its own size; others continue the beginnings of its texts.
VLLM_PYTHON is the interpreter of an environment with vLLM (docs/weights.md has the recipe).
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mm1.checkpoint import Loaded, load_for_use
from mm1.data.chat_format import prompt
from mm1.data.encode import encode
from mm1.data.store import open_store
from mm1.data.tiles import tile_spec
from mm1.document import Document, Image, Text
from mm1.exchange.description import positions_of
from mm1.exchange.export import export_run
from mm1.generate.sampling import Decoding
from mm1.generate.writer import Writer
from mm1.tiling import TileSpec

PAGE = Path(__file__).parents[1] / "docs/weights.md"
BEGIN, END = "<!-- vllm: python tests/with_vllm.py VLLM_PYTHON RUN... writes this table -->", "<!-- end of vllm -->"
PROMPTS, TOKENS = 40, 24
TIE = 1e-4
"""Logits closer than this may change places: both sides add the same fp32 numbers in other orders."""


@dataclass(frozen=True)
class Row:
    """A run: the class of its export, vLLM's class, prompts with a picture, equal prompts and answers, and ties."""

    run: str
    exported: str
    served: str
    pictures: int
    same_prompts: int
    same_answers: int
    ties: int  # answers that part where our two best logits are closer than `TIE`

    def cells(self) -> list[str]:
        equal = f"{self.same_answers} of {PROMPTS}" + (f", {self.ties} part at a tie" if self.ties else "")
        return [self.run, f"`{self.exported}`", f"`{self.served}`", str(self.pictures), equal]


def documents(loaded: Loaded) -> list[Document]:
    """What both are asked."""
    if loaded.sees:
        chats = open_store("sample:vqa-test").take([*range(PROMPTS)])
        firsts = [next(piece for piece in chat.pieces if isinstance(piece, Text)) for chat in chats]
        return [prompt([chat.images[0], question]) for chat, question in zip(chats, firsts, strict=True)]
    texts = open_store("sample:text-test").take([*range(PROMPTS)])
    beginnings = [" ".join(text.text.split()[:12]) for text in texts]
    return [prompt([Text(text)]) if loaded.chats else Document((Text(text),)) for text in beginnings]


def ask(python: str, export: Path, questions: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What vLLM answers."""
    file, answers = folder / "questions.json", folder / "answers.json"
    file.write_text(json.dumps(questions))
    ask_all(python, [(export, file, answers)], folder)
    return json.loads(answers.read_text())


def ask_all(python: str, models: list[tuple[Path, Path, Path]], folder: Path) -> None:
    """Ask vLLM about several exports: each with the file of its questions, and that of its answers."""
    script = Path(__file__).with_name("ask_vllm.py")
    subprocess.run(
        [python, script, *(path for three in models for path in three)],
        check=True,
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )


def row(python: str, run: Path, folder: Path) -> Row:
    """The row of a run."""
    loaded = load_for_use(run, precision="fp32")
    export_run(run, folder / "export", dtype="fp32")
    described = json.loads((folder / "export/config.json").read_text())
    queries, tokenizer = documents(loaded), loaded.tokenizer
    one = TileSpec(loaded.run.model.vision.image_size, 1)  # a picture is one image token, as vLLM takes it
    prompts = [
        {
            "tokens": encode(document, tokenizer, tile=one, end=False).tokens.tolist(),
            "pictures": [
                base64.b64encode(piece.data).decode() for piece in document.pieces if isinstance(piece, Image)
            ],
        }
        for document in queries
    ]
    limits = {"max_positions": positions_of(loaded.run), "max_tokens": TOKENS, "ends": sorted(tokenizer.ends)}
    answered = ask(python, folder / "export", {"prompts": prompts, **limits}, folder)
    writer = Writer(loaded.model, tokenizer, rows=1)
    tile = tile_spec(loaded.run.model, use=True)
    encoded = [encode(document, tokenizer, tile=tile, end=False) for document in queries]
    decoding = Decoding(max_tokens=TOKENS, stop_tokens=tokenizer.ends)
    ours = writer.engine.generate([writer._prompts.prompt(one) for one in encoded], decoding)
    same_prompts = same = ties = 0
    for query, completion, answer in zip(encoded, ours, answered["answers"], strict=True):
        same_prompts += query.tokens.tolist() == answer["prompt"]
        theirs = [token for token in answer["tokens"] if token not in tokenizer.ends]
        if completion.tokens == theirs:
            same += 1
            continue
        gap = _gap(loaded, writer._prompts.prompt(query), completion.tokens, theirs)
        ties += gap < TIE
        print(f"{run.name}: {completion.tokens} here, {theirs} there; they part at a gap of {gap:.2g}")
    return Row(
        run.name,
        described["architectures"][0],
        answered["model"],
        sum(bool(one["pictures"]) for one in prompts),
        same_prompts,
        same,
        ties,
    )


def _gap(loaded: Loaded, query: Any, ours: list[int], theirs: list[int]) -> float:
    """Our best logit less that of their token, where the answers part."""
    at = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    tokens_BT = torch.tensor([[*query.tokens, *ours[:at]]])
    pixels = torch.stack([picture.pixels() for picture in query.images]) if query.images else None
    model = loaded.model
    with torch.no_grad():
        x_BTD = model.decoder.embed(tokens_BT)
        if pixels is not None:
            x_BTD = model.embed(tokens_BT, model.encode_images(pixels))
        hidden_BTD = model.decoder(x_BTD, torch.arange(tokens_BT.shape[1])[None])
        logits_V = model.decoder.logits(hidden_BTD[0, -1])
    other = theirs[at] if at < len(theirs) else min(loaded.tokenizer.ends)
    return float(logits_V.max() - logits_V[other])


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    head = ["run", "export is a", "in vLLM", "prompts with a picture", "same greedy text"]
    lines = [head, ["---"] * len(head), *(one.cells() for one in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    python, *runs = sys.argv[1:]
    rows = []
    for run in runs:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(python, Path(run), Path(folder)))
            print(rows[-1])
    text = PAGE.read_text()
    if BEGIN in text:
        before, rest = text.split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{rest.split(END)[1]}")
