"""What the contrast of a whole step takes: peak memory by pairs, and the time of two passes against one.

`python benchmarks/contrast.py` takes the demo's encoder in micro-batches of 32 pairs. Memory is what torch's allocator
has handed out, from the profiler: the peak of a process also holds what the C library keeps for later. Times alternate
in rounds; the ratio is that of their medians.
"""

import platform
import statistics
import time
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

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


def peak(objective: Contrastive, step_batches: list[Batch]) -> float:
    """The most MiB of tensors that a step holds at a time, beside the model and its inputs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        step(objective, step_batches)
    results = record.profiler.kineto_results if record.profiler else None
    assert results is not None
    changes = sorted(
        (event for event in results.events() if event.name() == "[memory]"), key=lambda one: one.start_ns()
    )
    return max(accumulate(event.nbytes() for event in changes)) / 2**20


def main() -> None:
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
    width = sizes.tiny().decoder.width
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
    for kind in OBJECTIVES:  # after the times: the profiler slows what follows it
        objective = build(kind)
        step(objective, batches(64, CHUNK))
        for pairs in (64, 256, 1024):
            features = pairs * width * 4 * 2 / 2**20
            print(
                f"{kind:8} {pairs:5} pairs: {peak(objective, batches(pairs, CHUNK)):6.2f} MiB at the peak "
                f"(features {features:.2f} MiB, with gradients {2 * features:.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
