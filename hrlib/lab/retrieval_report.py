"""Pictures of an ID retrieval: the confusion matrix, strips of the matches, and the files of a report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .. import image, store
from ..errors import StoreError, number
from ..retrieval import Report
from . import figures
from .plots import image_grid, subplots

FILES = ("summary.json", "pictures.csv", "problems.csv", "confusion.png", "strips.png")  # of a report


def confusion(ax: Axes, counts: np.ndarray, *, title: str = "", scale: bool = True) -> None:
    """Draw how often the pictures of each row's person were matched with each column's person.

    counts: [N, N]. The diagonal is correct; a dark column is a person with whom many others are confused. Each row is
    divided by its sum; `scale` adds a colour bar.
    """
    share = counts / counts.sum(1, keepdims=True).clip(min=1)
    shown = ax.imshow(share, cmap="magma_r", vmin=0, vmax=1, interpolation="nearest", aspect="equal")
    if scale:
        ax.figure.colorbar(shown, ax=ax, shrink=0.7, label="share of a person's pictures")
    ax.set(xlabel="taken for person", ylabel="shows person", title=title)
    ax.grid(visible=False)


def strips(rows: list[tuple[Tensor, Tensor, Tensor, str]], *, width: float = 7.0, across: int = 2) -> Figure:
    """Retrieval strips, `across` side by side: content, stylised picture, retrieved content, and a caption.

    rows: three pictures [1, 3, H, W], drawn at one size, and the caption.
    """
    edge = max(picture.shape[2] for row in rows for picture in row[:3])
    fit = lambda x: torch.nn.functional.interpolate(x, (edge, edge), mode="bilinear", antialias=True)
    lines = [rows[i : i + across] for i in range(0, len(rows), across)]
    images = [[fit(picture) for row in line for picture in row[:3]] for line in lines]
    captions = [[text for row in line for text in ("", row[3], "")] for line in lines]
    missing = 3 * across - len(images[-1])
    images[-1] += [None] * missing
    captions[-1] += [""] * missing
    return image_grid(images, titles=["content", "stylised", "found"] * across, captions=captions, width=width)


def chosen(report: Report, n: int) -> list[int]:
    """The indices of n rows of a report to show: half of them wrong, spread evenly over the distances."""
    table = report.table[report.table["problem"] == ""].sort_values("distance")
    picked: list[int] = []
    for found in (False, True):
        some = table.index[table["found"] == found]
        count = min(len(some), n - len(picked) if found else n - n // 2)
        picked += [int(some[i]) for i in np.linspace(0, len(some) - 1, count).round().astype(int)] if count else []
    return picked


def apart(out: Path, *pictures: Path) -> None:
    """Raise `StoreError` if `out` is one of the folders of pictures, or in one: no picture may be replaced."""
    for folder in pictures:
        if out.resolve().is_relative_to(folder.resolve()):
            raise StoreError(
                f"{out} lies among the pictures in {folder}", expected="another folder", do="pass one outside it"
            )


def write(report: Report, contents: str | Path, out: str | Path, *, n: int = 12, force: bool = False) -> list[Path]:
    """Write `FILES` to the folder `out` (the numbers, the tables and two pictures), and return their paths.

    contents: the folder of content pictures. n: the number of strips. force: replace existing files of these names;
    without it, one is a `StoreError` before anything is written, as is an `out` in `contents`, forced or not.
    """
    contents, out = Path(contents), Path(out)
    apart(out, contents)
    n = number("n", n, "whole [1, inf)")
    paths = [store.new(out / name, force=force) for name in FILES]
    of_id = {p.stem: p for p in contents.iterdir() if p.suffix.lower() in image.SUFFIXES}
    low, high = report.interval()
    facts = report.rates() | {"chance": report.chance, "low": low, "high": high, "threshold": report.threshold}
    facts |= {"pictures": len(report.table), "contents": len(report.contents), "face": report.face}
    store.write_json(out / "summary.json", facts)
    store.write_bytes(out / "pictures.csv", report.table.to_csv(index=False).encode())
    store.write_bytes(out / "problems.csv", report.problems.to_csv(index=False).encode())
    edge = float(np.clip(0.06 * len(report.contents) + 2, 3, 9))
    fig, ax = subplots(width=edge + 1, height=edge)
    confusion(ax, report.confusion(), title=f"{report.rates()['top1']:.1%} found, chance {report.chance:.1%}")
    store.write_bytes(out / "confusion.png", figures.png(fig))
    rows = []
    for row in report.table.loc[chosen(report, n)].itertuples():
        words = f"{row.id}: {'found' if row.found else f'taken for {row.nearest}'} at {row.distance:.2f}"
        rows.append((*(image.read(p, 128) for p in (of_id[row.id], row.file, of_id[row.nearest])), words))
    store.write_bytes(out / "strips.png", figures.png(strips(rows)))
    return paths
