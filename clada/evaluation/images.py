"""Figures as images embedded in a page."""

import base64
from io import BytesIO

import matplotlib as mpl
from matplotlib.figure import Figure

# Colors that people with any color vision tell apart (Okabe and Ito), the darker ones first.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
GRAY = "#6b6b6b"


def svg_uri(figure: Figure) -> str:
    """Render the figure as a data URI; the same figure gives the same bytes."""
    image = BytesIO()
    with mpl.rc_context({"svg.hashsalt": "clada", "svg.fonttype": "path"}):
        figure.savefig(image, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(image.getvalue()).decode()
