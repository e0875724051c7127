"""Diagrams of networks and of the method, drawn from the modules that run, so that they cannot go stale."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import nn

from .plots import COLOURS, subplots

INK = "#333333"


def box(
    ax: Axes, x: float, y: float, w: float, h: float, text: str, *, colour: str = INK, dashed: bool = False
) -> None:
    """A rounded box centred at (x, y) with centred text; dashed for what does not exist yet."""
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


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "", *, bend: float = 0.0) -> None:
    """An arrow with an optional label beside its middle."""
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
            connectionstyle=f"arc3,rad={bend}",
        )
    )
    if text:
        middle = ((start[0] + end[0]) / 2 + 0.04, (start[1] + end[1]) / 2)
        ax.text(*middle, text, fontsize=6, color=INK, ha="left", va="center")


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
        stages.append((f"toRGB of every block, summed\n3 x {G.resolution} x {G.resolution}", orange))
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


def method(G: nn.Module, loss: nn.Module, built: dict[str, bool], *, width: float = 7.0) -> Figure:
    """Fig. 5: the flowchart of the method, with the sizes of the loaded generator and the settings of the loaded loss.

    built: {room: is it in the library}; a missing room is drawn dashed.
    """
    fig, ax = canvas(width, 2.75)
    blue, green, orange, purple = COLOURS[0], COLOURS[2], COLOURS[1], COLOURS[3]
    taps = ", ".join(t.removeprefix("features_") for t in loss.weights)
    full = "full-size input" if loss.resize is None else f"input reduced to {loss.resize}"
    box(
        ax,
        1.0,
        2.25,
        1.7,
        0.72,
        f"Style-INR-GAN (III-A)\n{G.num_ws} codes of {G.w_dim}\n{G.resolution} px and any H x W",
        colour=green,
    )
    box(ax, 1.0, 0.95, 1.7, 0.72, f"HRInversion loss (III-B)\nEq. (3): VGG conv taps\n{taps}; {full}", colour=orange)
    box(ax, 3.05, 1.6, 1.45, 0.8, "inversion, Eq. (1), (5)\n$w_s$, $w_t$ (and $n$)\nhrlib.inversion", colour=blue)
    box(
        ax,
        4.85,
        1.6,
        1.35,
        0.8,
        "mixing, Eq. (6), (7)\n$G_m$, $w_m$\nhrlib.mixing",
        colour=purple,
        dashed=not built["mixing"],
    )
    box(ax, 6.3, 1.6, 1.1, 0.8, "LSO, Eq. (8)\n$w_m + w_{opt}$\nhrlib.lso", colour=purple, dashed=not built["lso"])
    box(ax, 6.3, 0.45, 1.1, 0.6, "ID retrieval (III-D)\nhrlib.metrics", colour=blue, dashed=not built["id_retrieval"])
    box(ax, 3.05, 0.45, 1.45, 0.6, "panoramas, style transfer,\n3D (IV-F)", colour=green, dashed=not built["tiling"])
    arrow(ax, (1.87, 2.2), (2.3, 1.8))
    arrow(ax, (1.87, 1.0), (2.3, 1.4))
    arrow(ax, (3.8, 1.6), (4.15, 1.6))
    arrow(ax, (5.55, 1.6), (5.72, 1.6))
    arrow(ax, (6.3, 1.18), (6.3, 0.78))
    arrow(ax, (3.05, 1.18), (3.05, 0.78))
    return fig
