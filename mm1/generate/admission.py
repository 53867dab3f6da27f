"""In which order waiting requests enter the prefix cache, and how many at a time."""

from collections.abc import Sequence

from mm1.generate.prefix_cache import PrefixCache
from mm1.generate.prefix_index import MIN_SHARED
from mm1.generate.prompt_content import common_prefix
from mm1.generate.request import ActiveRequest

POSITIONS_PER_PREFILL = 8192
"""Positions of one pass over new prompts, unless a single prompt has more."""


def admission_order(requests: Sequence[ActiveRequest], prefix_length: int) -> list[ActiveRequest]:
    """The requests, shortest first, but those together that have more than the cache's prefix in common."""
    groups: list[list[ActiveRequest]] = []
    for request in sorted(requests, key=lambda request: request.known.content.tobytes()):
        common = common_prefix(groups[-1][-1].known.content, request.known.content) if groups else 0
        if common >= prefix_length + MIN_SHARED:
            groups[-1].append(request)
        else:
            groups.append([request])
    groups.sort(key=lambda group: max(len(request.known) for request in group))
    return [request for group in groups for request in group]


def next_wave(
    waiting: Sequence[ActiveRequest], prefix_cache: PrefixCache, *, most: int, positions: int = POSITIONS_PER_PREFILL
) -> list[ActiveRequest]:
    """The next waiting requests to prefill in one pass: `most` at most, at least one, and up to so many positions.

    A request that begins like another one of the wave, and not yet like a row, waits until it can take over that one's
    keys and values.
    """
    wave: list[ActiveRequest] = []
    longest = 0
    for request in waiting[: 4 * prefix_cache.rows]:
        if len(wave) == most:
            break
        cached = request.known.whole(prefix_cache.cached(request.known))
        longest = max(longest, new_positions(request, cached))
        if wave and longest * (len(wave) + 1) > positions:
            break
        if all(_shared(request, other) < cached + MIN_SHARED for other in wave):
            wave.append(request)
    return wave


def new_positions(request: ActiveRequest, cached: int) -> int:
    """How many positions have to be computed of a request of which a row holds the first `cached`."""
    return max(len(request.known) - cached, request.outputs)


def _shared(request: ActiveRequest, other: ActiveRequest) -> int:
    """How many first positions the request could take over from the other one."""
    ours, theirs = request.known, other.known
    return ours.whole(common_prefix(ours.content, theirs.content)) if ours.salt == theirs.salt else 0
