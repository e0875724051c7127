"""Saving figures and tables: PNG + SVG (or CSV + Markdown) + a sidecar that says how it came about.

On one machine the same figure gives the same bytes: no dates, fixed element names.
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
from .place import git

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

DPI = 200
SVG_LIMIT = 1_500_000  # bytes; larger ones make a page or a repository slow
MIN_ALT = 30  # characters


def checked_name(name: str) -> str:
    """`name` if it can be a file name everywhere; raises `BatchError` otherwise."""
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) and name not in ("records", "status"):
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


def svg(fig: Figure, *, title: str, alt: str) -> tuple[bytes, str]:
    """The figure as SVG bytes of at most `SVG_LIMIT`, and how: "vector", or why it is a picture in an SVG frame."""
    about = {"Date": None, "Creator": None, "Title": title, "Description": alt}
    for dpi in (DPI, 140, 100):  # of the images inside; lines and text have none
        buffer = io.BytesIO()
        fig.savefig(buffer, format="svg", dpi=dpi, metadata=about)
        if buffer.tell() <= SVG_LIMIT:
            return buffer.getvalue(), "vector"
    note = f"raster, because the vector version has {buffer.tell() / 1e6:.1f} MB"
    dpi = float(DPI)
    while len(data := _framed(fig, png(fig, dpi), alt)) > SVG_LIMIT:
        dpi *= 0.75
    return data, note


def _framed(fig: Figure, data: bytes, alt: str) -> bytes:
    w, h = (72 * inches for inches in fig.get_size_inches())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{w:g}pt" height="{h:g}pt" viewBox="0 0 {w:g} {h:g}">'
        f"<title>{html.escape(alt)}</title>"
        f'<image width="{w:g}" height="{h:g}" href="data:image/png;base64,{base64.b64encode(data).decode()}"/></svg>\n'
    ).encode()


def save(fig: Figure, path: Path, *, alt: str, caption: str, facts: dict[str, Any]) -> str:
    """Write PATH.png, PATH.svg and PATH.json (last); returns the HTML that shows the figure."""
    alt = checked_alt(alt, caption)
    picture = png(fig)
    drawing, how = svg(fig, title=path.name, alt=alt)
    files = {f"{path.name}.png": picture, f"{path.name}.svg": drawing}
    _write(path, files, {"kind": "figure", "alt": alt, "caption": caption, "svg": how, **facts})
    return html_figure(picture, alt=alt, caption=caption, width=120 * fig.get_figwidth())


def save_table(df: pd.DataFrame, path: Path, *, caption: str, digits: int, facts: dict[str, Any]) -> str:
    """Write PATH.csv, PATH.md and PATH.json (last); returns the HTML that shows the table."""
    if not caption.strip() or df.empty:
        raise BatchError(
            f"table {path.name} without " + ("rows" if df.empty else "a caption"), expected="both", do="give it"
        )
    files = {
        f"{path.name}.csv": df.to_csv(index=_named(df), lineterminator="\n").encode(),
        f"{path.name}.md": markdown(df, digits).encode(),
    }
    _write(path, files, {"kind": "table", "caption": caption, **facts})
    return html_table(df, caption=caption, digits=digits)


def _write(path: Path, files: dict[str, bytes], facts: dict[str, Any]) -> None:
    for name, data in files.items():
        store.write_bytes(path.parent / name, data)
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    store.write_json(path.parent / f"{path.name}.json", {"name": path.name, "files": sums, **facts})


def html_figure(picture: bytes, *, alt: str, caption: str, width: float) -> str:
    """A PNG as an HTML figure; exporters keep its alt text, unlike that of a bare image output."""
    source = base64.b64encode(picture).decode()
    return (
        f'<figure style="margin:0.5em 0"><img alt="{html.escape(alt)}" style="width:min(100%,{width:.0f}px)" '
        f'src="data:image/png;base64,{source}"><figcaption>{html.escape(caption)}</figcaption></figure>'
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


@functools.cache
def commit() -> str | None:
    """The git commit, with " + changes" when code differs from it; None outside a git clone."""
    head = git("rev-parse", "HEAD")
    if head is None:
        return None
    return head + (" + changes" if git("status", "--porcelain", "--", "hrlib", "notebooks") else "")
