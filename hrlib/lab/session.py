"""One notebook's run: its parameters, seeds, device, and the folder its results go to.

What readers see in `figures/` is written by `hrlab run` alone. A notebook that is run by hand, whatever its parameters,
writes to `build/live/`.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import devices, store
from ..errors import BatchError, StoreError, UnknownName, nearest
from ..stats import ENOUGH, summary
from . import figures, plots, records
from .notebook import Notebook, profile_of, read, validated
from .place import enter, figures_folder, live_folder, root

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def is_live() -> bool:
    """Whether somebody is looking: a kernel of JupyterLab, Jupyter Notebook, VS Code or Colab; papermill's is not.

    $HRLAB_LIVE (0 or 1) decides when it is set.
    """
    if "HRLAB_LIVE" in os.environ:
        return os.environ["HRLAB_LIVE"] == "1"
    # Jupyter's servers name the notebook in the kernel's environment; papermill and nbclient start theirs without.
    return "JPY_SESSION_NAME" in os.environ or "VSCODE_PID" in os.environ or "google.colab" in sys.modules


def begin(notebook: str, parameters: Mapping[str, Any]) -> Run:
    """Start a notebook's run: seed everything, apply the plot style, say where things go.

    The repository's root becomes the current directory: all relative paths in a notebook are relative to it.

    Args:
        notebook: the notebook's file name without `.ipynb`.
        parameters: usually `globals()`; the names that the notebook's parameters cell assigns are picked out of it.

    Raises:
        UnknownName: there is no such notebook.
        BatchError: a parameter is missing or has another JSON type than its default.
    """
    path = root() / "notebooks" / f"{notebook}.ipynb"
    if not path.exists():
        known = sorted(p.stem for p in path.parent.glob("*.ipynb"))
        raise UnknownName(
            f"lab.begin({notebook!r}): there is no {path.name}",
            expected=f"one of {known}",
            do=nearest(notebook, known) or "pass the notebook's own file name",
        )
    source = read(path)
    if missing := [name for name in source.parameters if name not in parameters]:
        raise BatchError(
            f"{notebook}: parameters {missing} are not set",
            expected="the parameters cell run before lab.begin",
            do="run the cells from the top",
        )
    values = validated(source, {name: parameters[name] for name in source.parameters})
    run = Run(source, values)
    enter()
    return run


class Run:
    """What `lab.begin` returns.

    Attributes:
        name: the notebook's name.
        parameters: name -> value.
        profile: "laptop", "smoke", "paper", or "custom" when the values are those of none of them.
        seed: the parameter `seed` (0 without one).
        device: the parameter `device`; "auto" takes a CUDA GPU when there is one.
        live: whether a live front end shows the notebook (see `is_live`).
        out: the folder of this run's results.
    """

    def __init__(self, source: Notebook, parameters: dict[str, Any]) -> None:
        self.source, self.parameters = source, parameters
        self.name = source.name
        self.seed = int(parameters.get("seed", 0))
        self.device = devices.choose(parameters.get("device", "auto"))
        self.live = is_live()
        self.profile = os.environ.get("HRLAB_PROFILE") or profile_of(source, parameters)
        given = os.environ.get("HRLAB_OUT")
        self.out = store.ready(Path(given).resolve() if given else live_folder() / self.name)
        self.records = records.Records()
        self._made: set[str] = set()
        random.seed(self.seed)
        np.random.seed(self.seed % 2**32)
        torch.manual_seed(self.seed)
        plots.apply_style()
        print(f"{self.name}: profile {self.profile} · {_describe(self.device)} · seed {self.seed}")

    def figure(self, fig: Figure, name: str, *, alt: str, caption: str, volatile: bool = False) -> None:
        """Save a figure as NAME.webp, or NAME.png and NAME.svg if it holds no pixels, and NAME.json; and show it.

        Args:
            fig: a matplotlib figure (of `lab.subplots`, `lab.image_grid`).
            name: file name without extension; listed in the notebook's metadata under `makes`.
            alt: what a reader who cannot see the picture needs, 30 characters or more.
            caption: the text under the picture.
            volatile: it shows what was measured on the machine and differs from run to run: seconds, peak memory. When
                nothing else in the notebook's results changed, the batch keeps the earlier measurements.

        Raises:
            BatchError: the alt text is missing, too short, or only repeats the caption.
        """
        shown = figures.save(fig, self._path(name), alt=alt, caption=caption, facts=self._facts(volatile))
        self._made.add(name)
        _display(shown)

    def table(self, df: pd.DataFrame, name: str, *, caption: str, digits: int = 2, volatile: bool = False) -> None:
        """Save a table as NAME.csv (full precision), NAME.md and NAME.json and show it (`digits` decimals).

        volatile: see `figure`.
        """
        shown = figures.save_table(df, self._path(name), caption=caption, digits=digits, facts=self._facts(volatile))
        self._made.add(name)
        _display(shown)

    def record(
        self,
        key: str,
        value: float | bool | str,
        *,
        unit: str = "",
        paper: float | str | None = None,
        n: int = 1,
        spread: float | None = None,
        interval: tuple[float, float] | None = None,
        volatile: bool = False,
    ) -> None:
        """Record one number under a key such as "psnr/conv/full/portrait0"; see `records.Records.add`."""
        how = dict(unit=unit, paper=paper, n=n, spread=spread, interval=interval, volatile=volatile)
        self.records.add(key, value, **how)

    def record_mean(
        self,
        key: str,
        values: Sequence[float],
        *,
        unit: str = "",
        paper: float | str | None = None,
        volatile: bool = False,
    ) -> None:
        """Record the mean of one number an image (or of one paired difference an image), its spread and interval.

        One value has no spread, and fewer than `evidence.ENOUGH` have no interval: then they are None.
        """
        found = summary(values)
        spread = found.spread if found.n > 1 else None
        sure = (found.low, found.high) if found.n >= ENOUGH else None
        how = dict(unit=unit, paper=paper, n=found.n, spread=spread, interval=sure, volatile=volatile)
        self.record(key, found.mean, **how)

    def compare(self, prefix: str = "") -> pd.DataFrame:
        """Show the records whose key starts with `prefix` beside the paper's numbers; returns the table."""
        frame = self.records.compare(prefix)
        _display(figures.html_table(frame, caption="", digits=3))
        return frame

    def file(self, name: str) -> Path:
        """A path in this run's folder for a file that other notebooks read; write it with `hrlib.store.atomic`."""
        return store.inside(self.out, name)

    def upstream(self, notebook: str, name: str) -> Path:
        """A file that another notebook's run left; that notebook must be listed in `needs`.

        Run by hand, this takes what the other one left when run by hand, else what the batch left.

        Raises:
            UnknownName: the notebook is not listed.
            StoreError: it has not made that file yet.
        """
        if notebook not in self.source.needs:
            raise UnknownName(
                f"{self.name} reads from {notebook!r}",
                expected=f"one of its metadata's `needs`: {list(self.source.needs)}",
                do=f"add {notebook!r} to `needs`, so that the batch runs it first",
            )
        given = os.environ.get("HRLAB_UPSTREAM")
        folders = [Path(given)] if given else [live_folder(), figures_folder("laptop")]
        paths = [store.inside(folder, notebook, name) for folder in folders]
        for path in paths:
            if path.exists():
                return path
        raise StoreError(
            f"{paths[-1]} does not exist", expected=f"a file made by {notebook}", do=f"run {notebook} first"
        )

    def finish(self) -> None:
        """Write records.json, say what was made, and name what the metadata promises and this run did not make."""
        store.write_json(self.out / records.FILE, self.records.rows())
        where = "" if "HRLAB_OUT" in os.environ else f" in {self.out.relative_to(root())}"  # the batch moves it
        print(f"{len(self._made)} figures and tables and {len(self.records)} numbers{where}")
        if missing := [name for name in self.source.makes if name not in self._made]:
            print(f"not made in this run, though the notebook's metadata lists them: {', '.join(missing)}")
        if extra := sorted(self._made - set(self.source.makes)):
            print(f"made, though the notebook's metadata does not list them under `makes`: {', '.join(extra)}")

    def _path(self, name: str) -> Path:
        return store.inside(self.out, figures.checked_name(name))

    def _facts(self, volatile: bool) -> dict[str, Any]:
        return {
            "notebook": self.name,
            "profile": self.profile,
            "parameters": self.parameters,
            "seed": self.seed,
            "device": str(self.device),
            "threads": torch.get_num_threads(),  # sums of floats depend on how they are shared out
            "versions": figures.versions(),
            "volatile": volatile,
        }


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device}, {threads} thread{'s' if threads > 1 else ''}"


def _display(html: str) -> None:
    from IPython.display import HTML, display

    display(HTML(html))
