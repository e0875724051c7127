"""Diagrams of the networks, of the method and of the notebooks, drawn from the modules and files themselves."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import nn

from ..errors import InvalidValue
from .notebook import Notebook, find
from .plots import COLOURS, subplots

INK = "#333333"


def box(
    ax: Axes, x: float, y: float, w: float, h: float, text: str, *, colour: str = INK, dashed: bool = False
) -> None:
    """A rounded box centred at (x, y) with centred text; dashed if what it stands for does not exist yet."""
    style = FancyBboxPatch(
        (x - w / 2, y - h / 2),
        w,
        h,
        boxstyle="round,pad=0.02,rounding_size=0.06",
        facecolor=colour + "22",
        edgecolor=colour,
        linestyle="--" if dashed else "-",
        linewidth=1.0,
    )
    ax.add_patch(style)
    ax.text(x, y, text, ha="center", va="center", fontsize=6.5, color=INK, linespacing=1.25)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
    """An arrow, with an optional label above its middle."""
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=7,
            linewidth=0.9,
            color=INK,
            shrinkA=0,
            shrinkB=0,
        )
    )
    if text:
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.05)
        ax.text(*middle, text, fontsize=6.5, color=INK, ha="center", va="bottom")


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A blank drawing, 1 unit = 1 inch, origin at the lower left."""
    fig, ax = subplots(width=width, height=height)
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return fig, ax


def generators(*nets: nn.Module, titles: list[str], width: float = 7.0) -> Figure:
    """Fig. 3: mapping, synthesis and output stage of each generator, with its real layers, channels and sizes."""
    rows = max(len(G.synthesis.resolutions) + (3 if hasattr(G.synthesis, "inr") else 1) for G in nets)
    height = 0.6 * rows + 0.7
    fig, ax = canvas(width, height)
    share = width / len(nets)
    for i, (G, title) in enumerate(zip(nets, titles, strict=True)):
        _generator(ax, G, title, left=i * share, share=share, top=height - 0.2)
    return fig


def _generator(ax: Axes, G: nn.Module, title: str, *, left: float, share: float, top: float) -> None:
    blue, green, orange, purple = COLOURS[0], COLOURS[2], COLOURS[1], COLOURS[3]
    x_map, x_syn, wide = left + 0.62, left + share * 0.62, share * 0.42
    bus = x_syn - wide / 2 - 0.12  # the line that carries w to every block
    y = first = top - 0.55
    ax.text(left + share / 2, top, title, ha="center", va="top", fontsize=9, weight="bold", color=INK)

    box(ax, x_map, y, 0.9, 0.34, f"$z$  [{G.z_dim}]", colour=blue)
    box(ax, x_map, y - 0.95, 0.95, 0.7, f"mapping\n{G.mapping.num_layers} x FC {G.w_dim}", colour=blue)
    box(ax, x_map, y - 2.0, 0.95, 0.55, f"$w \\in \\mathcal{{W}}^+$\n[{G.num_ws}, {G.w_dim}]", colour=blue)
    arrow(ax, (x_map, y - 0.19), (x_map, y - 0.58))
    arrow(ax, (x_map, y - 1.32), (x_map, y - 1.7))
    ax.plot([x_map + 0.5, bus], [y - 2.0, y - 2.0], color=INK, lw=0.9)

    head = getattr(G.synthesis, "inr", None)
    stages = [(_block_text(G, res), green) for res in G.synthesis.resolutions]
    if head is None:
        drawing = [hasattr(getattr(G.synthesis, f"b{res}"), "torgb") for res in G.synthesis.resolutions]
        made = "every block, summed" if all(drawing) else "the last block"
        stages.append((f"toRGB of {made}\n3 x {G.resolution} x {G.resolution}", orange))
    else:
        n_in, hidden = head.fc0.weight.shape[1], head.fc1.weight.shape[1]
        stages.append(("INR: grid sampling at $(x, y)$\nany H x W", purple))
        stages.append((f"INR: concatenate $(x, y)$\n{n_in} channels", purple))
        stages.append((f"INR: MLP {n_in} - {hidden} - {hidden} - 3\nRGB, H x W", orange))
    for k, (text, colour) in enumerate(stages):
        box(ax, x_syn, y, wide, 0.4, text, colour=colour)
        if k:
            arrow(ax, (x_syn, y + 0.38), (x_syn, y + 0.22))
        if k <= len(G.synthesis.resolutions):  # the blocks, and the output stage that the last code modulates
            arrow(ax, (bus, y), (bus + 0.1, y))
            last = y
        if colour == green:
            ax.text(x_syn + wide / 2 + 0.06, y, "+ n", fontsize=6.5, va="center", color=COLOURS[5])
        y -= 0.6
    ax.plot([bus, bus], [first, last], color=INK, lw=0.9)


def _block_text(G: nn.Module, res: int) -> str:
    convs = [name.split(".")[1] for name in G.synthesis.conv_names() if name.startswith(f"b{res}.")]
    return f"b{res}: {' + '.join(convs)}\n{G.channels[res]} x {res} x {res}"


def method(G: nn.Module, loss: nn.Module, *, width: float = 7.0) -> Figure:
    """Fig. 5: the flowchart of the method, with the sizes of the generator G and the settings of the loss."""
    fig, ax = canvas(width, 2.75)
    blue, green, orange, purple = COLOURS[0], COLOURS[2], COLOURS[1], COLOURS[3]
    taps = ", ".join(t.removeprefix("features_") for t in loss.weights)
    full = "full-size input" if loss.resize is None else f"input reduced to {loss.resize}"
    generator = f"Style-INR-GAN (III-A)\n{G.num_ws} codes of {G.w_dim} numbers\n{G.resolution} px, or any H x W"
    box(ax, 0.85, 2.25, 1.6, 0.72, generator, colour=green)
    box(ax, 0.85, 0.95, 1.6, 0.72, f"HRInversion loss (III-B)\nEq. (3): VGG conv taps\n{taps};\n{full}", colour=orange)
    box(ax, 2.75, 1.6, 1.2, 0.8, "inversion\nEq. (1), (5)\nhrlib.inversion", colour=blue)
    box(ax, 4.55, 1.6, 1.2, 0.8, "mixing (III-C)\nEq. (6), (7)\nhrlib.mixing", colour=purple)
    box(ax, 6.3, 1.6, 1.2, 0.8, "LSO (III-C)\nEq. (8), (9)\nhrlib.lso", colour=purple)
    box(ax, 6.3, 0.4, 1.2, 0.6, "ID retrieval (III-D)\nhrlib.retrieval", colour=blue)
    box(ax, 2.75, 0.4, 1.8, 0.6, "panoramas, style transfer,\n3D (IV-F)\nhrlib.tiling, hrlib.inversion3d", colour=green)
    arrow(ax, (1.67, 2.2), (2.12, 1.85))
    arrow(ax, (1.67, 1.0), (2.12, 1.35))
    arrow(ax, (2.75, 2.55), (2.75, 2.03))
    ax.text(2.75, 2.6, "pictures $x_s$, $x_t$", fontsize=6.5, color=INK, ha="center", va="bottom")
    arrow(ax, (3.38, 1.6), (3.92, 1.6), "$w_s$, $w_t$")
    arrow(ax, (5.18, 1.6), (5.67, 1.6), "$G_m$, $w_m$")
    arrow(ax, (6.3, 1.17), (6.3, 0.73))
    ax.text(6.25, 0.95, "$G_m(w_m + w_{opt})$", fontsize=6.5, color=INK, ha="right", va="center")
    arrow(ax, (2.75, 1.17), (2.75, 0.73))
    ax.text(2.8, 0.95, "$w$, $n$", fontsize=6.5, color=INK, ha="left", va="center")
    return fig


def series(
    notebooks: Mapping[str, Notebook],
    planned: Mapping[str, Notebook],
    chapters: Mapping[str, Sequence[str]],
    *,
    profile: str = "laptop",
    width: float = 7.0,
) -> Figure:
    """A map of the notebooks: a column per chapter; arrows lead from a notebook to those that read its results.

    Args:
        notebooks: name -> notebook, as `notebook.catalogue` returns them.
        planned: those that are not written yet, as `notebook.planned` returns them; drawn dashed.
        chapters: heading -> its notebooks, by name or prefix ("02").
        profile: the profile whose minutes are shown.
        width: inches.

    Raises:
        UnknownName: a chapter names an unknown notebook. InvalidValue: a notebook is in no chapter, or in several.
    """
    known = {**notebooks, **planned}
    columns = [[find(name, known) for name in names] for names in chapters.values()]
    if sorted(name for column in columns for name in column) != sorted(known):
        raise InvalidValue(
            f"chapters {columns}", expected=f"each of {list(known)} once", do="add or remove what differs"
        )
    gap, h, pitch, head = 0.26, 0.76, 0.92, 0.42
    w = (width - 0.05) / len(columns) - gap
    height = head + pitch * max(map(len, columns)) + 0.2
    fig, ax = canvas(width, height)
    places: dict[str, tuple[float, float]] = {}  # name -> left edge, centre
    for k, (heading, column) in enumerate(zip(chapters, columns, strict=True)):
        left, colour = gap + k * (w + gap), (COLOURS[0], COLOURS[1], COLOURS[3], COLOURS[2], COLOURS[4])[k % 5]
        ax.text(left, height - 0.04, textwrap.fill(heading, 17), va="top", fontsize=8, weight="bold", color=INK)
        for row, name in enumerate(column):
            places[name] = left, height - head - pitch * row - h / 2
            _entry(ax, known[name], *places[name], w, h, colour, name in planned, known[name].minutes.get(profile))
    for name, notebook in known.items():
        for need in (find(n, known) for n in notebook.needs):
            _needed(ax, places[need], places[name], w)
    words = f"Arrows lead to notebooks that read another one's results. Minutes: profile {profile}, on two CPU cores."
    ax.text(gap, 0.04, words, fontsize=6.5, color=INK, va="bottom")
    return fig


def _entry(
    ax: Axes,
    notebook: Notebook,
    left: float,
    y: float,
    w: float,
    h: float,
    colour: str,
    planned: bool,
    minutes: float | None,
) -> None:
    """One notebook: its number, its section and minutes, and its title."""
    box(ax, left + w / 2, y, w, h, "", colour=colour, dashed=planned)
    top = y + h / 2 - 0.02
    ax.text(left + 0.03, top, notebook.name[:2], fontsize=8, weight="bold", color=INK, va="top")
    about = "planned" if planned else f"{minutes:g} min" if minutes else ""
    ax.text(left + w - 0.03, top - 0.01, about, fontsize=6.5, color=INK, ha="right", va="top")
    section = f"Sec. {notebook.section}" if notebook.section else ""
    ax.text(left + 0.03, y - h / 2, section, fontsize=6, color="0.35", va="bottom")
    ax.text(left + 0.03, top - 0.16, textwrap.fill(notebook.title, 19), fontsize=6.5, color=INK, va="top")


def _needed(ax: Axes, start: tuple[float, float], end: tuple[float, float], w: float) -> None:
    """An arrow from a notebook to one that needs it: round the left side in the same column, straight to another."""
    (x0, y0), (x1, y1) = start, end
    if x0 != x1:
        arrow(ax, (x0 + w + 0.02, y0), (x1 - 0.03, y1))
        return
    bus = x0 - 0.14
    ax.plot([x0 - 0.02, bus, bus], [y0, y0, y1], color=INK, lw=0.9)
    arrow(ax, (bus, y1), (x1 - 0.02, y1))
