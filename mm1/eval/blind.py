"""The blind baseline: the same queries, each with the image of another query.

What a model scores blind, it knows from the question and the shots alone. A score above the blind score shows that the
model uses the image.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from mm1.eval.fewshot import Example, image_hash, rng


def exchange_images(queries: Sequence[Example], *, seed: int) -> list[Example]:
    """The same queries, each with the image of another one. The seed decides which; no query gets an equal image.

    Raises:
        ValueError: more than half of the queries have the same image, so no exchange exists.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for number, query in enumerate(queries):
        groups[image_hash(query.image)].append(number)
    largest = max(map(len, groups.values()), default=0)
    if largest * 2 > len(queries):
        raise ValueError(
            f"{largest} of {len(queries)} queries have the same picture, so pictures cannot be exchanged; "
            "take more queries (--limit)"
        )
    names = list(groups)
    order = [number for name in rng(seed, "blind", 0).permutation(len(names)) for number in groups[names[name]]]
    exchanged = list(queries)
    # queries with equal images are neighbours: a shift by the size of the largest group leaves every group
    for index, number in enumerate(order):
        other = order[(index + largest) % len(order)]
        images = [queries[other].image, *queries[other].more_images]
        more = tuple(images[(image + 1) % len(images)] for image in range(len(queries[number].more_images)))
        exchanged[number] = replace(queries[number], image=images[0], more_images=more)
    return exchanged
