"""Progress of a loop: a line updated in place if somebody is watching, one summary line otherwise.

By hand, because tqdm prints each refresh as an output of its own in a notebook that papermill runs; this leaves one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
REFRESH = 0.1  # seconds between updates


def progress(
    items: Iterable[T],
    total: int | None = None,
    label: str = "",
    *,
    unit: str = "step",
    status: Callable[[T], str] | None = None,
) -> Iterator[T]:
    """Yield `items` unchanged and show the progress.

    Args:
        items: usually one of the library's loops, which yield iterates.
        total: how many there will be; default: `len(items)` if there is one.
        label: shown at the beginning of the line.
        unit: what one item is called.
        status: item -> a few words about it, such as its loss.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    line = _line()
    start = shown = time.perf_counter()
    count, item = 0, None
    try:
        for item in items:
            count += 1
            now = time.perf_counter()
            if now - shown >= REFRESH:
                shown = now
                line(_text(label, count, total, now - start, unit, status(item) if status else ""), False)
            yield item
    finally:  # also when the consumer stops early or the loop raises
        words = status(item) if status and count else ""
        line(_text(label, count, total, time.perf_counter() - start, unit, words), True)


def _text(label: str, count: int, total: int | None, seconds: float, unit: str, words: str) -> str:
    of = f"/{total}" if total is not None and total != count else ""
    each = seconds / max(count, 1)
    pace = f"{each * 1000:.0f} ms" if each < 1 else f"{each:.1f} s"
    head = f"{label}: " if label else ""
    return (
        f"{head}{count}{of} {unit}{'' if count == 1 else 's'} in {seconds:.1f} s ({pace} a {unit})"
        + f" · {words}" * bool(words)
    )


def _line() -> Callable[[str, bool], None]:
    """A function (text, whether it is the last) that shows a line in a notebook, a terminal or a log."""
    from .session import is_live

    if is_live() and "IPython" in sys.modules:
        return _notebook_line()
    if sys.stderr.isatty():
        return lambda text, last: print(f"\r\x1b[K{text}", end="\n" if last else "", file=sys.stderr, flush=True)
    return lambda text, last: print(text, flush=True) if last else None


def _notebook_line() -> Callable[[str, bool], None]:
    from IPython.display import display

    handle = display({"text/plain": ""}, raw=True, display_id=True)
    return lambda text, last: handle.update({"text/plain": text}, raw=True)
