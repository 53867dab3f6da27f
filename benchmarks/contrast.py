"""What the contrast of a whole step takes: peak memory by pairs, and the time of two passes against one.

`python benchmarks/contrast.py` takes the demo's encoder in micro-batches of 32 pairs. Each row of memory is a process
of its own, so that its peak is that of its steps. Times alternate in rounds; the ratio is that of their medians.
"""

import multiprocessing
import platform
import resource
import statistics
import time

import torch

from mm1 import dist
from mm1.dist import DataRanks
from mm1.document import IGNORED, Batch
from mm1.model import sizes
from mm1.objectives.contrastive import Contrastive, ContrastiveModel, ContrastiveSigmoid

OBJECTIVES = {"softmax": Contrastive, "sigmoid": ContrastiveSigmoid}
CHUNK, TOKENS = 32, 16


def build(kind: str) -> Contrastive:
    model = sizes.tiny()
    model.connector.tokens, model.image_token_id = 1, 3
    objective = OBJECTIVES[kind](ContrastiveModel(model, kind), [])
    objective.model.initialise(0)
    return objective


def batches(pairs: int, chunk: int) -> list[Batch]:
    """Random pairs, `chunk` to a micro-batch, each a sequence of an image token and text."""
    generator = torch.Generator().manual_seed(0)
    step_batches = []
    for _ in range(0, pairs, chunk):
        tokens_BT = torch.randint(4, 4000, (chunk, TOKENS), generator=generator)
        tokens_BT[:, 0] = 3
        step_batches.append(
            Batch(
                tokens_BT=tokens_BT,
                targets_BT=torch.full_like(tokens_BT, IGNORED),
                document_BT=torch.ones_like(tokens_BT),
                position_BT=torch.arange(TOKENS).repeat(chunk, 1),
                images_NCYX=torch.randint(0, 256, (chunk, 3, 96, 96), dtype=torch.uint8, generator=generator),
                images=chunk,
                source_B=torch.zeros(chunk, dtype=torch.int64),
                sequence_B=torch.arange(chunk),
            )
        )
    return step_batches


def step(objective: Contrastive, step_batches: list[Batch]) -> float:
    """Processor seconds of a step, without the optimizer: other programs change them less than seconds."""
    start = time.process_time()
    for loss in objective.losses(step_batches, ranks=DataRanks(), device=torch.device("cpu")):
        loss.scaled(weight=1, sequences=1).backward()
    objective.model.zero_grad(set_to_none=True)
    return time.process_time() - start


def peak(kind: str, pairs: int, results: multiprocessing.SimpleQueue) -> None:
    """Put the MiB that the steps of so many pairs add to the peak of steps of two micro-batches."""
    dist.prepare_process()
    objective, step_batches = build(kind), batches(pairs, CHUNK)
    step(objective, step_batches[:2])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        step(objective, step_batches)
    results.put(((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, before / 1024))


def main() -> None:
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
    width = sizes.tiny().decoder.width
    start = multiprocessing.get_context("spawn")
    for kind in OBJECTIVES:
        for pairs in (64, 256, 1024):
            results = start.SimpleQueue()
            process = start.Process(target=peak, args=(kind, pairs, results))
            process.start()
            added, before = results.get()
            process.join()
            features = pairs * width * 4 * 2 / 2**20
            print(
                f"{kind:8} {pairs:5} pairs: {added:6.1f} MiB above the {before:.0f} of two micro-batches "
                f"(features {features:.2f} MiB, with gradients {2 * features:.2f})",
                flush=True,
            )
    dist.prepare_process()
    for kind in OBJECTIVES:
        objective, seconds = build(kind), {chunks: list[float]() for chunks in (1, 2, 4, 8)}
        for _ in range(7):
            for chunks, taken in seconds.items():
                taken.append(step(objective, batches(256, 256 // chunks)))
        one = statistics.median(seconds[1])
        for chunks, taken in seconds.items():
            middle = statistics.median(taken)
            print(
                f"{kind:8} 256 pairs in {chunks} micro-batches: {middle:.2f} s, {middle / one:.2f} of one", flush=True
            )


if __name__ == "__main__":
    main()
