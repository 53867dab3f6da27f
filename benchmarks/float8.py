"""The loss with the blocks' products in float8 beside that without, over the same steps of a small language model.

    python benchmarks/float8.py [--steps 200]

Float8 is emulated: values are rounded to it and multiplied in fp32, as no CPU has it. So this shows what the rounding
does to the loss, and nothing about speed. The small model reads the sample's texts in sequences of 128
tokens. Both runs have the same initial weights and batches; a third has other initial weights, for comparison.
"""

import argparse
import platform

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from mm1.config.model import ConnectorConfig, DecoderConfig, ModelConfig, VisionConfig
from mm1.config.run import DataConfig, OptimConfig, SourceConfig
from mm1.data.loader import Sequences
from mm1.data.tiles import tile_spec
from mm1.model.mllm import MLLM
from mm1.objectives.next_token import NextToken
from mm1.train import optim
from mm1.train.float8 import use_float8

LAST = 20
"""Steps whose mean loss is compared."""


def model_config(vocabulary: int) -> ModelConfig:
    return ModelConfig(
        vision=VisionConfig(image_size=16, patch_size=8, width=16, layers=1, heads=1, mlp_width=32),
        connector=ConnectorConfig(tokens=4),
        decoder=DecoderConfig(
            vocabulary=vocabulary, width=128, layers=3, heads=2, kv_heads=2, head_width=64, mlp_width=336
        ),
    )


def losses(sequences: Sequences, steps: int, *, seed: int, float8: bool) -> np.ndarray:
    """The loss of each step."""
    model = MLLM(model_config(sequences.tokenizer.vocabulary))
    if float8:
        use_float8(model, emulate=True)
    model.initialise(seed)
    objective, settings = NextToken(model, ["text"]), OptimConfig(learning_rate=2e-3)
    optimizer, seen = optim.build(model, settings, peak=2e-3), []
    for step in range(steps):
        loss = objective.loss(sequences.batch(list(range(4 * step, 4 * step + 4))))
        loss.scaled(weight=float(loss.weight), sequences=4).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen.append(float(loss.total.detach()) / loss.weight)
    return np.array(seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    sources = {"text": SourceConfig(store="sample:text-train")}
    data = DataConfig(sources=sources, sequence_length=128, max_images=0, workers=0)
    sequences = Sequences(data, tile=tile_spec(model_config(64)), seed=0, batch_size=4)
    runs = {
        "fp32": losses(sequences, steps, seed=0, float8=False),
        "float8, emulated": losses(sequences, steps, seed=0, float8=True),
        "fp32, other initial weights": losses(sequences, steps, seed=1, float8=False),
    }
    table = Table(title=f"{steps} steps, {platform.processor() or platform.machine()}, torch {torch.__version__}")
    for column in ("run", f"mean of the last {LAST}", "less fp32's", "largest difference of a step"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for name, seen in runs.items():
        difference = seen - runs["fp32"]
        figures = (seen[-LAST:].mean(), difference[-LAST:].mean(), np.abs(difference).max())
        table.add_row(name, *(f"{figure:.4f}" for figure in figures))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
