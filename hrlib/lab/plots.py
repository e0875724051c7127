"""The style of all figures, and the kind that this paper uses most: rows of images with magnified insets.

Nothing here uses pyplot: figures are plain objects, so a worker thread may draw them, and none stays in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from ..errors import InvalidValue, ShapeError, UnknownName, nearest
from ..image import to_uint8
from ..stats import summary

# The palette of Okabe and Ito, which colour-blind readers can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442"]
_BOX_COLOURS = ["#D55E00", "#56B4E9", "#F0E442", "#009E73"]  # visible against skin and hair
Box = tuple[float, float, float, float]  # x, y, width, height as fractions of the image, from its top left

_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8.5,
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # ships with matplotlib, so every machine draws the same letters
    "font.size": 8,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "savefig.facecolor": "white",
    "svg.fonttype": "none",  # text stays text: searchable, selectable, read aloud
    "svg.hashsalt": "hrlib",  # element names repeat from run to run
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
}


def apply_style() -> None:
    """Set matplotlib's defaults to the style of this project."""
    mpl.rcParams.update(_STYLE)


def subplots(
    nrows: int = 1,
    ncols: int = 1,
    *,
    width: float = 7.0,
    height: float = 2.6,
    sharex: bool | str = False,
    sharey: bool | str = False,
    squeeze: bool = True,
    width_ratios: Sequence[float] | None = None,
    height_ratios: Sequence[float] | None = None,
    subplot_kw: Mapping[str, Any] | None = None,
    gridspec_kw: Mapping[str, Any] | None = None,
) -> tuple[Figure, Any]:
    """A figure of `width` x `height` inches and its axes; the other arguments are those of `plt.subplots`."""
    apply_style()
    fig = Figure(figsize=(width, height), layout="constrained")
    axes = fig.subplots(
        nrows,
        ncols,
        sharex=sharex,
        sharey=sharey,
        squeeze=squeeze,
        width_ratios=width_ratios,
        height_ratios=height_ratios,
        subplot_kw=subplot_kw,
        gridspec_kw=gridspec_kw,
    )
    return fig, axes


def heat(x: torch.Tensor, *, vmin: float = 0.0, vmax: float | None = None, cmap: str = "magma") -> torch.Tensor:
    """A map [H, W] as a picture [3, H, W] in [-1, 1] for `image_grid`; `vmax` defaults to the largest value.

    For signed values use a diverging colour map around zero: `heat(x, vmin=-v, vmax=v, cmap="RdBu_r")`.
    """
    values = x.detach().cpu().float().numpy()
    while values.ndim > 2 and len(values) == 1:  # [1, H, W] and [1, 1, H, W] are maps too
        values = values[0]
    if values.ndim != 2:
        raise ShapeError(
            f"heat() got a map of shape {tuple(x.shape)}", expected="[H, W]", do="average or pick a channel first"
        )
    top = float(values.max()) if vmax is None else vmax
    scaled = (values - vmin) / max(top - vmin, 1e-12)
    rgb = mpl.colormaps[cmap](np.clip(scaled, 0, 1))[..., :3]
    return torch.from_numpy(rgb * 2 - 1).permute(2, 0, 1).float()


def forest(
    ax: Axes,
    groups: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    worse: str = "",
    better: str = "",
    less_is_better: bool = False,
) -> None:
    """A forest plot of paired differences: a row per group, with a dot per image, the mean and its 95 % interval.

    Intervals that exclude zero are blue, the others grey.

    Args:
        ax: the axes to draw on.
        groups: label -> differences, one per image; the first group on top.
        xlabel: what is compared, with the unit.
        worse, better: words above the left and the right end, such as "full input worse".
        less_is_better: turn the axis, so that better is right in every panel.
    """
    for y, values in enumerate(groups.values()):
        overall = summary(values)
        colour = COLOURS[0] if overall.low > 0 or overall.high < 0 else "0.45"
        ax.plot(values, np.full(len(values), y + 0.28), "o", color="0.6", ms=2.5, mew=0)
        ax.plot([overall.low, overall.high], [y, y], color=colour, lw=3, solid_capstyle="butt")
        ax.plot(overall.mean, y, "o", color=colour, ms=5, mec="white", mew=0.8)
    ax.axvline(0, color="0.2", lw=0.8)
    if less_is_better:
        ax.invert_xaxis()
    ax.set(yticks=range(len(groups)), yticklabels=list(groups), ylim=(len(groups) - 0.4, -0.6), xlabel=xlabel)
    ax.grid(axis="y", visible=False)
    for x, words, side in ((0.0, worse, "left"), (1.0, better, "right")):
        if words:
            ax.text(x, 1.01, words, transform=ax.transAxes, ha=side, va="bottom", fontsize=6.5, color="0.35")


def image_grid(
    images: Sequence[Any],
    *,
    titles: Sequence[str] | None = None,
    captions: Sequence[Any] | None = None,
    row_labels: Sequence[str] | None = None,
    insets: Sequence[Box] | Mapping[int, Sequence[Box]] = (),
    inset_place: str = "below",
    colour_bar: tuple[str, float, float] | None = None,
    width: float = 7.0,
) -> Figure:
    """Images in rows and columns of equal cells, with magnified insets.

    Args:
        images: rows of [3, H, W], [1, 3, H, W] or [H, W] tensors in [-1, 1]; a flat list is one row; None is empty.
        titles: one per column, above the first row.
        captions: nested like `images`; small text under each image.
        row_labels: one per row, at the left.
        insets: boxes (x, y, w, h) as fractions of the image from its top left, for all rows; or {row: boxes}.
        inset_place: "below" puts the crops in a strip under the image, "corner" only the first, at its lower right.
        colour_bar: (label with the unit, vmin, vmax) of maps among the images, which `heat` drew in magma.
        width: total width in inches; the height follows.

    Returns:
        A figure. The crops are enlarged by nearest neighbour, so they show the image's own pixels.

    Raises:
        ShapeError: no images, ragged rows, or an image of another layout or with values that are not finite.
        InvalidValue: an inset box outside the image. UnknownName: an unknown `inset_place`.
    """
    apply_style()
    if inset_place not in ("below", "corner"):
        hint = nearest(inset_place, ["below", "corner"]) or "put the crops below the image or in its corner"
        raise UnknownName(f"inset_place {inset_place!r}", expected="'below' or 'corner'", do=hint)
    rows = [[pixels(x) for x in row] for row in _nested(images)]
    texts = _nested(captions) if captions is not None else [[""] * len(row) for row in rows]
    columns = len(rows[0])
    _same_length("rows of images", [len(r) for r in rows], columns)
    _same_length("captions", [len(r) for r in texts] + [columns] * (len(texts) != len(rows)), columns)
    _same_length("titles", [len(titles)] if titles else [], columns)
    _same_length("row labels", [len(row_labels)] if row_labels else [], len(rows))
    boxes = [list(insets.get(i, ())) if isinstance(insets, Mapping) else list(insets) for i in range(len(rows))]
    return _draw(rows, titles, texts, row_labels, boxes, inset_place, colour_bar, width)


_GAP, _STRIP_GAP, _LINE, _EDGE = 0.06, 0.035, 0.15, 0.01  # inches: between cells, around crops, a line of text, margin
_BAR = 0.62  # inches at the right for a colour bar


def _draw(rows, titles, texts, row_labels, boxes, place, bar, width) -> Figure:
    columns = len(rows[0])
    left, right = 0.2 if row_labels else _EDGE, _BAR if bar else _EDGE
    cell = (width - left - right - _GAP * (columns - 1)) / columns
    head = _LINE * max(t.count("\n") + 1 for t in titles) + 0.04 if titles else 0.0
    # First the heights, because matplotlib counts from the bottom.
    pictures, strips, feet = [], [], []
    for row, text, around in zip(rows, texts, boxes, strict=True):
        shapes = [x.shape for x in row if x is not None]
        pictures.append(max((cell * h / w for h, w, _ in shapes), default=cell))
        crops = [b[3] * h / (b[2] * w) for b in around for h, w, _ in shapes]
        small = (cell - _STRIP_GAP * (len(around) - 1)) / max(len(around), 1)
        strips.append(small * max(crops) + _STRIP_GAP if crops and place == "below" else 0.0)
        feet.append(_LINE * max(t.count("\n") + 1 for t in text) if any(text) else 0.0)
    height = head + sum(pictures) + sum(strips) + sum(feet) + _GAP * (len(rows) - 1) + 2 * _EDGE
    fig = Figure(figsize=(width, height))

    def axes(x: float, top: float, w: float, h: float) -> Axes:
        ax = fig.add_axes((x / width, 1 - (top + h) / height, w / width, h / height))
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        ax.spines[:].set_visible(False)
        return ax

    top = head + _EDGE
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            x = left + j * (cell + _GAP)
            ax = axes(x, top, cell, pictures[i])
            if i == 0 and titles:
                ax.set_title(titles[j], fontsize=8, pad=3)
            if j == 0 and row_labels:
                ax.set_ylabel(row_labels[i], fontsize=8, labelpad=3)
            if image is not None:
                ax.imshow(image)
                crops = [_crop(image, box) for box in boxes[i]]
                _frames(ax, image, boxes[i][: 1 if place == "corner" else None])
                if place == "corner":
                    crops = crops[:1]
                for k, crop in enumerate(crops):
                    if place == "below":
                        small = (cell - _STRIP_GAP * (len(crops) - 1)) / len(crops)
                        y = top + pictures[i] + _STRIP_GAP
                        inner = axes(x + k * (small + _STRIP_GAP), y, small, strips[i] - _STRIP_GAP)
                    else:
                        small = 0.42 * cell
                        tall = small * crop.shape[0] / crop.shape[1]
                        inner = axes(x + cell - small, top + pictures[i] - tall, small, tall)
                    inner.imshow(crop, interpolation="nearest")
                    inner.spines[:].set(visible=True, color=_BOX_COLOURS[k % 4], linewidth=1.2)
            if texts[i][j]:
                y = 1 - (top + pictures[i] + strips[i] + 0.03) / height
                fig.text((x + cell / 2) / width, y, texts[i][j], ha="center", va="top", fontsize=7)
        top += pictures[i] + strips[i] + feet[i] + _GAP
    if bar:
        label, vmin, vmax = bar
        high = min(height - head - 2 * _EDGE, 1.8)
        scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(vmin, vmax), "magma")
        place_of_bar = axes(width - _BAR + 0.08, head + _EDGE, 0.1, high)
        fig.colorbar(scale, cax=place_of_bar, label=label)
    return fig


def _frames(ax: Axes, image: np.ndarray, boxes: Sequence[Box]) -> None:
    for k, box in enumerate(boxes):
        y0, y1, x0, x1 = _bounds(image, box)
        frame = Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, lw=1.1, ec=_BOX_COLOURS[k % 4])
        frame.set_path_effects([withStroke(linewidth=2.0, foreground="#00000088")])  # visible on any background
        ax.add_patch(frame)


def _bounds(image: np.ndarray, box: Box) -> tuple[int, int, int, int]:
    """Rows y0:y1 and columns x0:x1 of a box; at least two pixels each way."""
    x, y, w, h = box
    if min(box) < 0 or w <= 0 or h <= 0 or x + w > 1 or y + h > 1:
        raise InvalidValue(
            f"inset box {box}", expected="(x, y, w, h) as fractions of the image", do="keep x + w and y + h at most 1"
        )
    rows, columns = image.shape[:2]
    y0, x0 = round(y * rows), round(x * columns)
    return y0, min(rows, y0 + max(2, round(h * rows))), x0, min(columns, x0 + max(2, round(w * columns)))


def _crop(image: np.ndarray, box: Box) -> np.ndarray:
    y0, y1, x0, x1 = _bounds(image, box)
    return image[y0:y1, x0:x1]


def _nested(items: Sequence[Any]) -> list[list[Any]]:
    """A flat list becomes one row."""
    if not len(items):
        raise ShapeError("image_grid() got nothing", expected="at least one image", do="pass a list of tensors")
    return [list(row) for row in items] if isinstance(items[0], (list, tuple)) else [list(items)]


def _same_length(what: str, got: Sequence[int], expected: int) -> None:
    if any(n != expected for n in got):
        raise ShapeError(
            f"image_grid() got {what} of length {list(got)}", expected=f"{expected} each", do="pad with None or ''"
        )


def pixels(x: torch.Tensor | None) -> np.ndarray | None:
    """uint8 [H, W, 3] of a picture in [-1, 1]: [3, H, W], [1, 3, H, W] or grey [H, W]; None stays None."""
    if x is None:
        return None
    if not isinstance(x, torch.Tensor):
        raise ShapeError(
            f"an image of type {type(x).__name__}",
            expected="a tensor",
            do="convert it with image.from_uint8, or read it with image.read",
        )
    t = x.detach().float()
    if t.ndim == 2:
        t = t.expand(3, -1, -1)
    if t.ndim == 3:
        t = t[None]
    finite = bool(torch.isfinite(t).all())
    if t.ndim != 4 or t.shape[:2] != (1, 3) or not finite:
        raise ShapeError(
            f"an image of shape {tuple(x.shape)}" + " with values that are not finite" * (not finite),
            expected="finite values of shape [3, H, W], [1, 3, H, W] or [H, W], in [-1, 1]",
            do="pass one image per cell" if finite else "find the step that made them NaN or infinite",
        )
    return to_uint8(t)[0]
