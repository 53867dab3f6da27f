"""What a trained token counts, by the number of trained tokens of its document in its sequence.

With `token` long answers count for more than short ones; with `sample` all documents count alike; `sqrt` is between
them. The three are those of InternVL's trainer (arXiv 2412.05271).
"""

from collections.abc import Callable

import torch

from mm1.document import Batch

KINDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "token": torch.ones_like,
    "sample": torch.reciprocal,
    "sqrt": torch.rsqrt,
}


def token_weights(batch: Batch, trained_R: torch.Tensor, *, kind: str) -> torch.Tensor:
    """The weights [R] of the trained positions of the flat batch, in fp32.

    They depend on nothing outside a document's part of its sequence, so no packing, accumulation or number of ranks
    changes them.
    """
    sequences, length = batch.document_BT.shape
    first_B1 = torch.arange(sequences, device=trained_R.device)[:, None] * (length + 1)
    document_R = (batch.document_BT + first_B1).flatten()[trained_R]
    counts = torch.zeros(sequences * (length + 1), device=trained_R.device)
    counts = counts.index_add(0, document_R, torch.ones_like(document_R, dtype=counts.dtype))
    return KINDS[kind](counts[document_R])
