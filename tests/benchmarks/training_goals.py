"""What training.py must reach, cell by cell: each goal as a sentence with the figure and whether it is met."""

from collections.abc import Iterator
from typing import Any

from training_cells import Cell

Rows = dict[str, dict[str, Any]]

OVER_PADDED = {(256, 128, 8): 2.5, (512, 64, 8): 4.0}
"""tree over padded."""
OVER_TRL = {(256, 64, 8): 5.0, (32, 512, 8): 1.0}
"""tree over TRL's training part."""
OF_FLOPS, OVER_GROUPER, OF_PACKED, OF_TRL_MEMORY, LARGE_VOCABULARY = 0.85, 1.15, 0.97, 0.5, 32_768


def goals(cell: Cell, rows: Rows, vocabulary: int) -> Iterator[str]:
    """The goals that this cell is measured by, where the contenders they name have run."""

    def speed_up(name: str, over: str) -> float | None:
        return rows[over]["cpu"] / rows[name]["cpu"] if name in rows and over in rows else None

    place = (cell.prompt, cell.completion, cell.group)
    wanted: list[tuple[str, float | None, float]] = []
    if place in OVER_PADDED:
        wanted.append(("tree over padded", speed_up("tree", "padded"), OVER_PADDED[place]))
    over_padded = speed_up("tree", "padded")
    if over_padded is not None:
        wanted.append(("tree over padded, of the FLOP ratio", over_padded / rows["tree"]["flop_ratio"], OF_FLOPS))
    if cell.group > 1:
        wanted.append(("tree over prefix-grouper", speed_up("tree", "prefix-grouper"), OVER_GROUPER))
    else:
        wanted.append(("tree over packed, nothing shared", speed_up("tree", "packed"), OF_PACKED))
    if place in OVER_TRL:
        wanted.append(("tree over TRL", speed_up("tree", "trl"), OVER_TRL[place]))
    over_each = [value for value in (speed_up("auto", "tree"), speed_up("auto", "packed")) if value is not None]
    wanted.append(("auto over the better of tree and packed", min(over_each, default=None), OF_PACKED))
    for what, value, least in wanted:
        if value is not None:
            yield f"{what} >= {least:g}x: {value:.2f}x, {'met' if value >= least else 'MISSED'}"
    if vocabulary >= LARGE_VOCABULARY and "tree" in rows and "trl" in rows:
        share = rows["tree"]["peak"] / rows["trl"]["peak"]
        yield f"tree's peak <= {OF_TRL_MEMORY:g}x TRL's: {share:.2f}x, {'met' if share <= OF_TRL_MEMORY else 'MISSED'}"
