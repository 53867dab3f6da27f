"""The style of all drawings, and a drawing as SVG.

Text has the colour of the page around it, so that one drawing serves light and dark.
"""

import io
import re
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#3f7fd1", "#d9822b", "#2f9e6e", "#b5559b", "#8d8136", "#5f6fb8", "#c2554d")
"""One for each source, readable on white and on near-black."""

_INK = "#010203"  # replaced by `currentColor` when the drawing is done
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mm1",
    "font.family": "sans-serif",
    "font.size": 9.5,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#8888887f",
    "grid.linewidth": 0.4,
    "legend.frameon": False,
}


def legend(axes: Axes) -> None:
    """Put the legend above the drawing, if anything in it has a label."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, borderaxespad=0, handlelength=1.4)


def svg(figure: Figure, name: str) -> str:
    """The SVG element without its XML head; `name` makes ids unique on a page with several figures."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{re.sub(r'[^a-z0-9]+', '-', name.lower())}-", text)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img"', text, count=1)
