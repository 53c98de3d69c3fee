"""Plots as inline SVG in the page's own ink, by matplotlib; dense ones as PNG."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toolkit.quiet import quiet
from toolkit.reports.page import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

F64 = NDArray[np.float64]

_INK = "#010203"  # stands for the page's text colour, whichever scheme it has
COLOURS = ("#3b7dd8", "#e07b39", "#4aa564", "#b65fcf", "#c8a415", "#d1495b")  # readable on white and on near-black
_DENSE = 3000  # points from which a PNG is smaller than an SVG
_SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text: the browser has the fonts for every script
    "text.parse_math": False,  # a class may be called $x$
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": f"cycler('color', {list(COLOURS)})",
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.titlelocation": "left",
} | dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK)


@contextmanager
def _axes(width: float, height: float) -> Iterator[tuple[Any, Axes]]:
    """A figure of its own, without pyplot's global state; sizes in inches."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def _picture(figure: Any, alt: str, *, dense: bool = False, caption: str = "") -> Picture:
    data = io.BytesIO()
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    if dense:
        figure.savefig(data, format="png", dpi=110, facecolor="white")
        return Picture(alt, uri=f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}", caption=caption)
    import matplotlib as mpl

    salt = hashlib.blake2b(alt.encode(errors="surrogatepass"), digest_size=6).hexdigest()  # ids differ on a page
    # text is measured in a font that may lack its script: the browser has others
    with mpl.rc_context({"svg.hashsalt": salt}), quiet("matplotlib"):
        figure.savefig(data, format="svg", metadata={"Date": None, "Creator": None})
    svg = data.getvalue().decode().replace(_INK, "currentColor")
    svg = re.sub(r"<(\?xml|!DOCTYPE)[^>]*>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(id="|url\(#|href="#)(?=[A-Za-z])', rf"\g<1>f{salt}", svg)
    return Picture(alt, svg=svg[svg.index("<svg") :], caption=caption)


def bars(title: str, names: Sequence[str], series: Mapping[str, Sequence[float]], *, unit: str = "") -> Picture:
    """Horizontal bars, one group per name."""
    height = max(1.6, 0.26 * len(names) * max(1, len(series)) + 0.9)
    with _axes(5.6, min(height, 14)) as (figure, axes):
        places, thick = np.arange(len(names)), 0.8 / max(1, len(series))
        for i, (name, values) in enumerate(series.items()):
            axes.barh(places + (i - (len(series) - 1) / 2) * thick, values, thick, label=name)
        axes.set_yticks(places, [_short(name) for name in names])
        axes.invert_yaxis()
        axes.set_title(title)
        axes.set_xlabel(unit)
        if len(series) > 1:
            axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.06), ncols=len(series))
        said = "; ".join(f"{name} {_list(values)}" for name, values in series.items())
        return _picture(figure, f"{title}. {', '.join(map(str, names[:12]))}: {said}")


def histogram(title: str, series: Mapping[str, F64], *, unit: str = "", bins: int = 30) -> Picture:
    """Shares per bin of each series over the same bins, as steps."""
    with _axes(5.0, 2.8) as (figure, axes):
        every = np.concatenate([np.asarray(values, float) for values in series.values()] or [np.zeros(0)])
        edges = np.histogram_bin_edges(every, bins=bins) if len(every) else np.linspace(0, 1, bins + 1)
        for name, values in series.items():
            shares = np.histogram(values, edges)[0] / max(1, len(values))
            axes.stairs(shares, edges, label=f"{name} ({len(values):,})", fill=len(series) == 1, linewidth=1.6)
        axes.set_title(title)
        axes.set_xlabel(unit)
        axes.set_ylabel("share")
        if len(series) > 1:
            axes.legend(frameon=False)
        middles = "; ".join(f"{name}: median {np.median(values):.4g}" for name, values in series.items() if len(values))
        return _picture(figure, f"{title}, histogram. {middles}")


def lines(
    title: str, x: Mapping[str, Sequence[float]], y: Mapping[str, Sequence[float]], *, labels: tuple[str, str] = ("", "")
) -> Picture:
    """One line per series."""
    with _axes(5.0, 2.8) as (figure, axes):
        for name, values in y.items():
            axes.plot(x[name], values, label=_short(name), linewidth=1.6)
        axes.set_title(title)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        if 1 < len(y) <= 12:
            axes.legend(frameon=False, fontsize=8)
        ends = "; ".join(f"{name} ends at {values[-1]:.4g}" for name, values in list(y.items())[:12] if len(values))
        return _picture(figure, f"{title}. {ends}")


def reliability(title: str, curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Picture:
    """Share of right answers against stated confidence, per curve; on the diagonal confidence is honest."""
    with _axes(3.9, 3.5) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=":")
        for name, (confidence, accuracy) in curves.items():
            axes.plot(confidence, accuracy, marker="o", markersize=4, label=name, linewidth=1.4)
        axes.set_title(title)
        axes.set_xlabel("confidence")
        axes.set_ylabel("share right")
        axes.legend(frameon=False)
        said = "; ".join(f"{name}: {_list(right)} right at confidence {_list(sure)}" for name, (sure, right) in curves.items())
        return _picture(figure, f"{title}. {said}")


def heat(title: str, names: Sequence[str], values: F64) -> Picture:
    """A square matrix with its numbers, where they fit."""
    side = min(1.6 + 0.55 * len(names), 9.0)
    with _axes(side + 1.2, side) as (figure, axes):
        axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set_xticks(range(len(names)), [_short(n, 14) for n in names], rotation=45, ha="right")
        axes.set_yticks(range(len(names)), [_short(n, 14) for n in names])
        if len(names) <= 12:
            for i in range(len(names)):
                for j in range(len(names)):
                    dark = abs(values[i, j]) > 0.6
                    axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", color="white" if dark else "black", size=8)
        axes.set_title(title)
        pairs = [f"{names[i]} and {names[j]} {values[i, j]:.2f}" for i in range(len(names)) for j in range(i)]
        return _picture(figure, f"{title}. {'; '.join(pairs[:15])}")


def scatter(title: str, groups: Mapping[str, F64]) -> Picture:
    """Points (N, 2) per group."""
    with _axes(4.6, 3.8) as (figure, axes):
        for name, points in groups.items():
            axes.scatter(points[:, 0], points[:, 1], s=5, alpha=0.5, linewidths=0, label=f"{name} ({len(points):,})")
        axes.set_title(title)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.legend(frameon=False, markerscale=3)
        count = sum(len(points) for points in groups.values())
        return _picture(figure, f"{title}: {count:,} points of {', '.join(groups)}", dense=count > _DENSE)


def _short(name: object, limit: int = 28) -> str:
    text = str(name)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _list(values: Sequence[float], limit: int = 12) -> str:
    return ", ".join(f"{value:.4g}" for value in values[:limit]) + (" …" if len(values) > limit else "")
