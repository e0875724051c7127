"""Saving figures and tables, each with a sidecar that records how it was made.

A plot is saved as SVG and a small PNG. A figure that contains pixels is saved as one WebP, since an SVG would hold the
same pixels at many times the size. A table is saved as CSV and Markdown. On one machine the same figure gives the same
bytes: there are no dates, and element names are fixed.
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
from ..errors import InvalidValue

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from PIL.Image import Image

DPI = 200  # of the rendering that files are made from
PICTURE_WIDTH, PLOT_WIDTH = 1400, 1000  # maximum pixels of a WebP and of the PNG of a plot
QUALITY = 85  # of a WebP, out of 100; it preserves grain and hair at the scale of the figures
SVG_LIMIT = 1_500_000  # bytes; a plot with more elements loads faster as a picture
MIN_ALT = 30  # characters


def checked_name(name: str) -> str:
    """`name` if it can be a file name on every system; raises `InvalidValue` otherwise."""
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) and name != "records":
        return name
    form = "lower-case letters, digits, _ and -, other than 'records'"
    raise InvalidValue(f"figure name {name!r}", expected=form, do="rename the figure")


def checked_alt(alt: str, caption: str) -> str:
    """`alt` if it may serve readers who cannot see the picture; raises `InvalidValue` otherwise."""
    text = " ".join(alt.split())
    if len(text) >= MIN_ALT and text != " ".join(caption.split()):
        return text
    raise InvalidValue(
        f"alt text {alt!r}",
        expected=f"{MIN_ALT} characters or more that do not repeat the caption",
        do="describe what is shown and where, for somebody who cannot see it",
    )


def png(shown: Figure | Image, dpi: float = DPI) -> bytes:
    """A figure, at `dpi`, or a Pillow picture as PNG bytes."""
    if not hasattr(shown, "savefig"):
        return _encoded(shown, "png")
    buffer = io.BytesIO()
    shown.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def svg(fig: Figure, *, title: str, alt: str) -> bytes:
    """The figure as SVG bytes."""
    buffer = io.BytesIO()
    about = {"Date": None, "Creator": None, "Title": title, "Description": alt}
    fig.savefig(buffer, format="svg", dpi=DPI, metadata=about)
    return buffer.getvalue()


def files(drawn: bytes, drawing: bytes) -> dict[str, bytes]:
    """The files to save for a figure: suffix -> bytes; the first is the one to show.

    Args:
        drawn: the figure as a PNG at `DPI`.
        drawing: the figure as an SVG, which is saved if it contains no pixels.
    """
    from PIL import Image

    picture = Image.open(io.BytesIO(drawn)).convert("RGB")
    if b"<image" in drawing or len(drawing) > SVG_LIMIT:
        return {".webp": _encoded(_narrowed(picture, PICTURE_WIDTH), "webp", quality=QUALITY, method=6)}
    few = _narrowed(picture, PLOT_WIDTH).quantize(256)  # lines and letters need few colours
    return {".png": _encoded(few, "png", optimize=True), ".svg": drawing}


def _narrowed(picture: Image, width: int) -> Image:
    from PIL import Image

    if picture.width <= width:
        return picture
    return picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)


def _encoded(picture: Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def save(fig: Figure, path: Path, *, alt: str, caption: str, facts: dict[str, Any]) -> str:
    """Write PATH.webp, or PATH.png and PATH.svg, and PATH.json (last); returns the HTML that shows the figure."""
    alt = checked_alt(alt, caption)
    made = files(png(fig), svg(fig, title=path.name, alt=alt))
    _write(path, made, {"kind": "figure", "alt": alt, "caption": caption, **facts})
    suffix, shown = next(iter(made.items()))
    return html_figure(shown, suffix[1:], alt=alt, caption=caption, width=120 * fig.get_figwidth())


def describe_film(film: Path, *, alt: str, caption: str, facts: dict[str, Any]) -> str:
    """Write NAME.json for a finished NAME.webp that moves; returns the HTML that shows it."""
    from PIL import Image

    alt, data = checked_alt(alt, caption), film.read_bytes()
    named = film.with_name(checked_name(film.stem))
    with Image.open(film) as first:
        width = first.width
    _write(named, {film.suffix: data}, {"kind": "figure", "alt": alt, "caption": caption, **facts})
    return html_figure(data, film.suffix[1:], alt=alt, caption=caption, width=width)


def save_table(df: pd.DataFrame, path: Path, *, caption: str, digits: int, facts: dict[str, Any]) -> str:
    """Write PATH.csv, PATH.md and PATH.json (last); returns the HTML that shows the table."""
    if not caption.strip() or df.empty:
        lacking = "rows" if df.empty else "a caption"
        raise InvalidValue(f"table {path.name} without {lacking}", expected="rows and a caption", do=f"add {lacking}")
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
    """A "webp" or "png" as an HTML figure: exporters keep its alt text, but drop that of a plain image output."""
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
    """A table as Markdown; numbers with `digits` decimals, missing ones as empty cells."""
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
    """The versions of Python and the packages that a result depends on."""
    names = ("hrlib", "torch", "torchvision", "timm", "numpy", "matplotlib")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
