"""Plots as inline SVG in the page's own ink, by matplotlib; clouds of points are PNG within it."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.analysis.pages.page import Picture
from toolkit.base.arrays import F64
from toolkit.base.quiet import quiet
from toolkit.errors import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_INK = "#010203"  # stands for the page's text colour, whichever scheme it has
COLOURS = ("#3b7dd8", "#e07b39", "#4aa564", "#b65fcf", "#c8a415", "#d1495b")  # readable on white and on near-black
_POINTS = 150  # of a line that are drawn
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


def _picture(figure: Any, alt: str) -> Picture:
    import matplotlib as mpl

    data = io.BytesIO()
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    salt = hashlib.blake2b(alt.encode(errors="surrogatepass"), digest_size=6).hexdigest()  # ids differ on a page
    # text is measured in a font that may lack its script: the browser has others
    with mpl.rc_context({"svg.hashsalt": salt}), quiet("matplotlib"):
        figure.savefig(data, format="svg", dpi=200, metadata={"Date": None, "Creator": None})
    svg = data.getvalue().decode().replace(_INK, "currentColor")
    svg = re.sub(r"<(\?xml|!DOCTYPE)[^>]*>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(id="|url\(#|href="#)(?=[A-Za-z])', rf"\g<1>f{salt}", svg)
    return Picture(alt, svg[svg.index("<svg") :])


def _legend(figure: Any, **how: Any) -> Any:
    """The names of what is drawn below the axes, where nothing is covered: in as many columns as the figure is wide."""
    names = [text for axes in figure.axes for text in axes.get_legend_handles_labels()[1]]
    fitting = int(figure.get_figwidth() / (0.5 + 0.075 * max(map(len, names))))  # a letter of 8 points, and the line before it
    return figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=max(1, min(len(names), fitting)), **how)


def bars(
    title: str,
    names: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    unit: str = "",
    spans: Sequence[tuple[float, float]] = (),
) -> Picture:
    """Horizontal bars, one group per name; `spans` are the intervals of the first series, from and to."""
    height = max(1.6, 0.26 * len(names) * max(1, len(series)) + 0.9)
    with _axes(5.6, min(height, 14)) as (figure, axes):
        places, thick = np.arange(len(names)), 0.8 / max(1, len(series))
        for i, (name, values) in enumerate(series.items()):
            axes.barh(places + (i - (len(series) - 1) / 2) * thick, values, thick, label=_short(name))
        if spans:
            axes.hlines(places, *zip(*spans, strict=True), color=_INK, linewidth=1.2)
            axes.axvline(0, color=_INK, linewidth=0.8)
        axes.set_yticks(places, [_short(name) for name in names])
        axes.invert_yaxis()
        axes.set_title(title)
        axes.set_xlabel(unit)
        if len(series) > 1:
            _legend(figure)
        description = "; ".join(f"{name} {_list(values)}" for name, values in series.items())
        return _picture(figure, f"{title}. {', '.join(map(str, names[:12]))}: {description}")


def intervals(
    title: str, whole: Mapping[str, tuple[float, float, float]], parts: Mapping[str, Sequence[float]], *, unit: str = ""
) -> Picture:
    """Per name a value with its interval (value, from, to), and smaller dots for its `parts`."""
    names = list(whole)
    with _axes(5.6, min(max(1.5, 0.34 * len(names) + 0.9), 14)) as (figure, axes):
        for place, name in enumerate(names):
            value, low, high = whole[name]
            axes.scatter(parts.get(name, ()), [place] * len(parts.get(name, ())), s=13, color=COLOURS[1], alpha=0.75, zorder=2)
            axes.hlines(place, low, high, color=COLOURS[0], linewidth=2.2, zorder=1)
            axes.scatter([value], [place], s=38, color=COLOURS[0], zorder=3)
        axes.set_yticks(range(len(names)), [_short(name) for name in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_title(title)
        axes.set_xlabel(unit)
        description = "; ".join(f"{name} {value:.4g}, {low:.4g} to {high:.4g}" for name, (value, low, high) in whole.items())
        return _picture(figure, f"{title}. {description}")


def histogram(title: str, series: Mapping[str, F64], *, unit: str = "", bins: int = 30) -> Picture:
    """Shares per bin of each series over the same bins, as steps."""
    with _axes(5.0, 2.8) as (figure, axes):
        every = np.concatenate([np.asarray(values, float) for values in series.values()] or [np.zeros(0)])
        edges = np.histogram_bin_edges(every, bins=bins) if len(every) else np.linspace(0, 1, bins + 1)
        for name, values in series.items():
            shares = np.histogram(values, edges)[0] / max(1, len(values))
            axes.stairs(shares, edges, label=f"{_short(name)} ({len(values):,})", fill=len(series) == 1, linewidth=1.6)
        axes.set_title(title)
        axes.set_xlabel(unit)
        axes.set_ylabel("share")
        if len(series) > 1:
            _legend(figure)
        middles = "; ".join(f"{name}: median {np.median(values):.4g}" for name, values in series.items() if len(values))
        return _picture(figure, f"{title}, histogram. {middles}")


def lines(
    title: str,
    x: Mapping[str, Sequence[float]],
    y: Mapping[str, Sequence[float]],
    *,
    labels: tuple[str, str] = ("", ""),
    kinds: Mapping[str, str] | None = None,
) -> Picture:
    """One line per series; those of one of `kinds` share a colour. Long ones are thinned to _POINTS points."""
    from matplotlib.ticker import MaxNLocator

    with _axes(5.0, 2.8) as (figure, axes):
        kind = {name: (kinds or {}).get(name, name) for name in y}
        several = list(dict.fromkeys(kind.values()))
        for name, values in y.items():
            colour = COLOURS[several.index(kind[name]) % len(COLOURS)]
            kept = np.unique(np.linspace(0, len(values) - 1, min(len(values), _POINTS)).astype(int))
            axes.plot(np.asarray(x[name])[kept], np.asarray(values)[kept], color=colour, linewidth=1.4, alpha=0.85)
            if len(values) == 1:
                axes.scatter(x[name], values, color=colour, s=16)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(title)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        if 1 < len(several) <= 12:
            for i, name in enumerate(several):
                axes.plot([], [], color=COLOURS[i % len(COLOURS)], label=_short(name))
            _legend(figure)
        ends = "; ".join(f"{name} ends at {values[-1]:.4g}" for name, values in list(y.items())[:12] if len(values))
        return _picture(figure, f"{title}. {ends}")


def reliability(title: str, curves: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]]) -> Picture:
    """Share of right answers against stated confidence, and how many rows (as the size of the dots), per curve.

    On the diagonal confidence is honest; above it there is too little of it, below too much.
    """
    with _axes(4.2, 3.9) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=":")
        for colour, (name, (confidence, accuracy, counts)) in zip(COLOURS, curves.items(), strict=False):
            axes.plot(confidence, accuracy, label=_short(name), linewidth=1.4, color=colour)
            share = np.asarray(counts, float) / max(float(np.sum(counts)), 1.0)
            axes.scatter(confidence, accuracy, s=8 + 150 * share, color=colour, alpha=0.85, linewidths=0)
        axes.set_title(title)
        axes.set_xlabel("confidence")
        axes.set_ylabel("share right")
        _legend(figure)
        description = "; ".join(
            f"{name}: {_list(right)} right at confidence {_list(sure)}" for name, (sure, right, _) in curves.items()
        )
        return _picture(figure, f"{title}. {description}")


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
    """Points (N, 2) per group; the points are one PNG within the SVG, whatever their number."""
    with _axes(5.0, 4.2) as (figure, axes):
        for name, points in groups.items():
            label = f"{_short(name)} ({len(points):,})"
            axes.scatter(points[:, 0], points[:, 1], s=6, alpha=0.6, linewidths=0, rasterized=True, label=label)
        axes.set_title(title)
        axes.set_xticks([])
        axes.set_yticks([])
        for handle in _legend(figure, markerscale=3).legend_handles:
            handle.set_rasterized(False)
        count = sum(len(points) for points in groups.values())
        return _picture(figure, f"{title}: {counted(count, 'points')} of {', '.join(groups)}")


def _short(name: object, limit: int = 28) -> str:
    text = str(name)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _list(values: Sequence[float], limit: int = 12) -> str:
    return ", ".join(f"{value:.4g}" for value in values[:limit]) + (" …" if len(values) > limit else "")
