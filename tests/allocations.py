"""What torch's profiler says of memory."""

from itertools import accumulate

from torch.profiler import profile


def most_alive(profiler: profile) -> int:
    """The most bytes alive at any time of a profile with `profile_memory`, more than at its start."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(accumulate(changes, initial=0))
