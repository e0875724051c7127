"""Saving figures and tables, each with a sidecar that says how it came about.

A plot is kept as SVG and a small PNG. A figure that holds pixels is a picture, kept as one WebP: an SVG would frame the
same pixels at many times the size. A table is kept as CSV and Markdown. On one machine the same figure gives the same
bytes: no dates, fixed element names.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import importlib.metadata
import io
import math
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import store
from ..errors import BatchError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from PIL.Image import Image

DPI = 200  # of the drawing that files are made from
PICTURE_WIDTH, PLOT_WIDTH = 1400, 1000  # pixels at most, of a WebP and of the PNG of a plot
QUALITY = 85  # of a WebP, of 100; grain and hair at the figures' own scale survive it
SVG_LIMIT = 1_500_000  # bytes; a plot of so many elements is quicker as a picture
MIN_ALT = 30  # characters


def checked_name(name: str) -> str:
    """`name` if it can be a file name everywhere; raises `BatchError` otherwise."""
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) and name != "records":
        return name
    raise BatchError(f"figure name {name!r}", expected="lower-case letters, digits, _ and -", do="rename it")


def checked_alt(alt: str, caption: str) -> str:
    """`alt` if it can serve a reader who does not see the picture; raises `BatchError` otherwise."""
    text = " ".join(alt.split())
    if len(text) >= MIN_ALT and text != " ".join(caption.split()):
        return text
    raise BatchError(
        f"alt text {alt!r}",
        expected=f"{MIN_ALT} characters or more that are not the caption",
        do="describe what is seen and where, for somebody who cannot see it",
    )


def png(fig: Figure, dpi: float = DPI) -> bytes:
    """The figure as PNG bytes."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def svg(fig: Figure, *, title: str, alt: str) -> bytes:
    """The figure as SVG bytes."""
    buffer = io.BytesIO()
    about = {"Date": None, "Creator": None, "Title": title, "Description": alt}
    fig.savefig(buffer, format="svg", dpi=DPI, metadata=about)
    return buffer.getvalue()


def files(drawn: bytes, drawing: bytes) -> dict[str, bytes]:
    """What is kept of a figure, suffix -> bytes; the first is the one to show.

    Args:
        drawn: the figure as a PNG at `DPI`.
        drawing: the figure as an SVG, which is kept when it holds no pixels.
    """
    from PIL import Image

    picture = Image.open(io.BytesIO(drawn)).convert("RGB")
    if b"<image" in drawing or len(drawing) > SVG_LIMIT:
        return {".webp": _encoded(_narrowed(picture, PICTURE_WIDTH), "webp", quality=QUALITY, method=6)}
    few = _narrowed(picture, PLOT_WIDTH).quantize(256)  # lines and letters have few colours
    return {".png": _encoded(few, "png", optimize=True), ".svg": drawing}


def _narrowed(picture: Image, width: int) -> Image:
    from PIL import Image

    if picture.width <= width:
        return picture
    return picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)


def _encoded(picture: Image, kind: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **how)
    return buffer.getvalue()


def save(fig: Figure, path: Path, *, alt: str, caption: str, facts: dict[str, Any]) -> str:
    """Write PATH.webp, or PATH.png and PATH.svg, and PATH.json (last); returns the HTML that shows the figure."""
    alt = checked_alt(alt, caption)
    made = files(png(fig), svg(fig, title=path.name, alt=alt))
    _write(path, made, {"kind": "figure", "alt": alt, "caption": caption, **facts})
    suffix, shown = next(iter(made.items()))
    return html_figure(shown, suffix[1:], alt=alt, caption=caption, width=120 * fig.get_figwidth())


def save_table(df: pd.DataFrame, path: Path, *, caption: str, digits: int, facts: dict[str, Any]) -> str:
    """Write PATH.csv, PATH.md and PATH.json (last); returns the HTML that shows the table."""
    if not caption.strip() or df.empty:
        raise BatchError(
            f"table {path.name} without " + ("rows" if df.empty else "a caption"), expected="both", do="give it"
        )
    made = {
        ".csv": df.to_csv(index=_named(df), lineterminator="\n").encode(),
        ".md": markdown(df, digits).encode(),
    }
    _write(path, made, {"kind": "table", "caption": caption, **facts})
    return html_table(df, caption=caption, digits=digits)


def _write(path: Path, made: dict[str, bytes], facts: dict[str, Any]) -> None:
    for suffix, data in made.items():
        store.write_bytes(path.with_name(path.name + suffix), data)
    sums = {path.name + suffix: hashlib.sha256(data).hexdigest() for suffix, data in made.items()}
    store.write_json(path.with_name(f"{path.name}.json"), {"name": path.name, "files": sums, **facts})


def html_figure(shown: bytes, kind: str, *, alt: str, caption: str, width: float) -> str:
    """A "webp" or "png" as an HTML figure; exporters keep its alt text, unlike that of a bare image output."""
    source = base64.b64encode(shown).decode()
    return (
        f'<figure style="margin:0.5em 0"><img alt="{html.escape(alt)}" style="width:min(100%,{width:.0f}px)" '
        f'src="data:image/{kind};base64,{source}"><figcaption>{html.escape(caption)}</figcaption></figure>'
    )


def html_table(df: pd.DataFrame, *, caption: str, digits: int) -> str:
    """A table as HTML; numbers with `digits` decimals."""
    body = df.to_html(float_format=lambda v: f"{v:.{digits}f}", na_rep="", index=_named(df), border=0)
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{body}</figure>" if caption else body


def markdown(df: pd.DataFrame, digits: int) -> str:
    """A table as Markdown; numbers with `digits` decimals, a missing one as an empty cell."""
    frame = df.reset_index() if _named(df) else df

    def text(value: object) -> str:
        if isinstance(value, float):
            return "" if math.isnan(value) else f"{value:.{digits}f}"
        return str(value).replace("|", "\\|")

    rows = [[str(c) for c in frame.columns], ["---"] * len(frame.columns)]
    rows += [[text(v) for v in row] for row in frame.itertuples(index=False, name=None)]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _named(df: pd.DataFrame) -> bool:
    return any(name is not None for name in df.index.names)


@functools.cache
def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    names = ("hrlib", "torch", "torchvision", "timm", "numpy", "matplotlib")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
