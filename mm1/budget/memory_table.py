"""How budgets print bytes."""

from collections.abc import Mapping

from rich.table import Column, Table


def gigabytes(count: float) -> str:
    """So many bytes as a number of gigabytes (10^9)."""
    return f"{max(count, 0) / 1e9:.2f}"  # no -0.00 of a few bytes


def memory_table(title: str, memory: Mapping[str, float], *, limit: float) -> Table:
    """What holds the bytes, their sum, and the bytes that there are."""
    table = Table(title, Column("GB", justify="right"))
    for part, count in memory.items():
        table.add_row(part, gigabytes(count), end_section=part == [*memory][-1])
    table.add_row("total", gigabytes(sum(memory.values())))
    table.add_row("available", gigabytes(limit))
    return table
