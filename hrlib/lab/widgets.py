"""A live widget around any long loop: controls -> iterator of items -> picture.

JupyterLab runs widget callbacks on a thread beside the kernel's main thread. So nothing here uses pyplot, `start`
returns at once, and one worker thread does all the work:

    idle --start--> running --stop, end or error--> idle

`start` while running replaces the request: the worker leaves its loop at the next item and uses the latest values.
"""

from __future__ import annotations

import html
import itertools
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..errors import InvalidValue, ShapeError
from . import figures, plots
from .progress_bar import REFRESH
from .session import is_live

_DPI = 130
_drawing = threading.Lock()  # matplotlib's text cache is not thread-safe


def picture(item: Any) -> bytes:
    """A figure, a [3, H, W] tensor in [-1, 1] or a uint8 [H, W, 3] array as PNG bytes."""
    with _drawing:
        if isinstance(item, Figure):
            return figures.png(item, dpi=_DPI)
        from PIL import Image

        pixels = item if isinstance(item, np.ndarray) else plots.pixels(item)
        if pixels.dtype != np.uint8 or pixels.ndim != 3:
            raise ShapeError(
                f"render() returned an array {pixels.shape} of {pixels.dtype}",
                expected="uint8 [H, W, 3]",
                do="return a tensor in [-1, 1] or a Figure instead",
            )
        return figures.png(Image.fromarray(pixels))


class Live:
    """Run a loop from a widget and show its items as pictures.

    Args:
        iterate: called with the controls' values as keywords; returns an iterator. It runs in the worker thread.
        controls: name -> ipywidgets control, labelled with its name unless it has a description. Sliders report when
            they are released, not while they are dragged.
        render: item -> Figure, tensor [3, H, W] in [-1, 1] or uint8 array [H, W, 3]; called at most 10 times a second
            and always for the last item.
        alt: a description for readers who cannot see the picture.
        auto: no Start button; changing any control restarts the loop.
        headless_steps: without a live front end, the loop yields this many items with the controls' initial values, and
            the last picture is shown, so that a batch run tests the same code and a static page has a picture.
    """

    def __init__(
        self,
        iterate: Callable[..., Iterator[Any]],
        *,
        controls: Mapping[str, Any],
        render: Callable[[Any], Any],
        alt: str,
        auto: bool = False,
        headless_steps: int = 10,
    ) -> None:
        import ipywidgets as widgets

        self.iterate, self.render, self.controls = iterate, render, dict(controls)
        self.alt, self.auto, self.headless_steps = figures.checked_alt(alt, ""), auto, headless_steps
        self._lock = threading.Lock()
        self._request: dict[str, Any] | None = None  # the latest, until the worker takes it
        self._stop = threading.Event()  # leave the current loop
        self._worker: threading.Thread | None = None
        # An empty image would look broken, so it is hidden until there is a picture. ipywidgets' Image has no alt text
        # (and a tooltip breaks it), so the description appears under the picture for everybody.
        shape = {"max_width": "100%", "min_width": "512px", "align_self": "flex-start", "display": "none"}
        self.image = widgets.Image(format="png", layout=shape)
        about = widgets.HTML(f'<div style="font-size:smaller;opacity:.8">{html.escape(self.alt)}</div>')
        self.status = widgets.HTML()
        self.start_button = widgets.Button(description="Start", icon="play", button_style="primary")
        self.stop_button = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.start_button.on_click(lambda _: self.start())
        self.stop_button.on_click(lambda _: self.stop())
        for name, control in self.controls.items():
            control.description = control.description or name.replace("_", " ")  # its label
            if hasattr(control, "continuous_update"):
                control.continuous_update = False
            if auto:
                control.observe(lambda _: self.start(), names="value")
        buttons = [self.stop_button] if auto else [self.start_button, self.stop_button]
        self.box = widgets.VBox([*self.controls.values(), widgets.HBox(buttons), self.status, self.image, about])

    def show(self) -> None:
        """Show the widget; without a live front end, run a few steps and show a static picture."""
        from IPython.display import HTML, display

        if is_live():
            display(self.box)
            if self.auto:
                self.start()
        else:
            display(HTML(self.static()))

    def static(self) -> str:
        """The picture after `headless_steps` items, as HTML. Errors are raised, as there is no status line."""
        count, last = 0, None
        for last in itertools.islice(self.iterate(**self._values()), self.headless_steps):
            count += 1
        if not count:
            hint = "check the initial values of the controls"
            raise InvalidValue("the widget's loop yielded nothing", expected="at least one item", do=hint)
        said = ", ".join(f"{name} = {value}" for name, value in self._values().items())
        note = f"Static picture after {count} steps ({said}); run the notebook in JupyterLab for the controls."
        shown = self.render(last)
        width = 120 * shown.get_figwidth() if isinstance(shown, Figure) else max(256, shown.shape[-1])
        return figures.html_figure(picture(shown), "png", alt=self.alt, caption=note, width=width)

    def start(self) -> None:
        """Request a run with the controls' current values and return at once. The latest request wins."""
        with self._lock:
            self._request = self._values()
            self._stop.set()  # ends a running loop at its next item
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="hrlab-live", daemon=True)
                self._buttons(running=True)
                self._worker.start()

    def stop(self) -> None:
        """Ask the running loop to end at its next item, and return at once."""
        with self._lock:
            self._request = None
            self._stop.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing runs; returns False if that takes longer than `timeout` seconds."""
        worker = self._worker
        if worker is not None:
            worker.join(timeout)
        return self._worker is None

    def _values(self) -> dict[str, Any]:
        return {name: control.value for name, control in self.controls.items()}

    def _work(self) -> None:
        while True:
            with self._lock:
                values, self._request = self._request, None
                if values is None:
                    self._worker = None
                    self._buttons(running=False)
                    return
                self._stop.clear()
            try:
                self._loop(values)
            except BaseException as e:  # shown in the status line; the worker survives even a SystemExit
                self._say(f"{type(e).__name__}: {e}", error=traceback.format_exc())

    def _loop(self, values: dict[str, Any]) -> None:
        self._say("starting …")
        begun, shown, count, item, drawn = time.perf_counter(), 0.0, 0, None, None
        items = iter(self.iterate(**values))
        try:
            for item in items:
                count += 1
                now = time.perf_counter()
                if now - shown >= REFRESH:
                    self._draw(item, f"step {count}, {now - begun:.1f} s")
                    shown, drawn = time.perf_counter(), count
                if self._stop.is_set():
                    break
        finally:
            getattr(items, "close", lambda: None)()  # lets a generator free its memory
        if self._request is None:  # no further run is waiting: show where this one ended
            how = "stopped" if self._stop.is_set() else "done"
            words = f"{how} after {count} step{'' if count == 1 else 's'}, {time.perf_counter() - begun:.1f} s"
            if count and drawn != count:
                self._draw(item, words)
            self._say(words)

    def _draw(self, item: Any, words: str) -> None:
        self.image.value = picture(self.render(item))
        self.image.layout.display = None
        self._say(words)

    def _say(self, words: str, error: str = "") -> None:
        colour = ' style="color:#b00020"' if error else ""
        details = f"<details><summary>details</summary><pre>{html.escape(error)}</pre></details>" if error else ""
        self.status.value = f'<div role="status"{colour}>{html.escape(words)}</div>{details}'

    def _buttons(self, *, running: bool) -> None:
        self.start_button.description = "Restart" if running else "Start"
        self.stop_button.disabled = not running
