"""One notebook's run: its parameters, seeds and device, and the folder for its results.

Only `hrlab run` writes to `figures/`. A notebook run by hand writes to `build/live/`, whatever its parameters.
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
    """Whether somebody is watching: True in JupyterLab, Jupyter Notebook, VS Code and Colab, False under papermill.

    $HRLAB_LIVE (0 or 1) overrides this.
    """
    if "HRLAB_LIVE" in os.environ:
        return os.environ["HRLAB_LIVE"] == "1"
    # Jupyter servers put the notebook's name into the kernel's environment; papermill and nbclient do not.
    return "JPY_SESSION_NAME" in os.environ or "VSCODE_PID" in os.environ or "google.colab" in sys.modules


def begin(notebook: str, parameters: Mapping[str, Any]) -> Run:
    """Start a notebook's run: set all seeds, apply the plot style, and print the profile, device and seed.

    The repository's root becomes the current directory, so relative paths in a notebook are relative to it.

    Args:
        notebook: the notebook's file name without `.ipynb`.
        parameters: usually `globals()`, of which only the names in the notebook's parameters cell are used.

    Raises:
        UnknownName: there is no such notebook.
        BatchError: a parameter is missing. InvalidValue: its JSON type differs from that of its default.
    """
    path = root() / "notebooks" / f"{notebook}.ipynb"
    if not path.exists():
        known = sorted(p.stem for p in path.parent.glob("*.ipynb"))
        raise UnknownName(
            f"lab.begin({notebook!r}): there is no {path.name}",
            expected=f"one of {known}",
            do=nearest(notebook, known) or "pass the name of the notebook's file",
        )
    source = read(path)
    if missing := [name for name in source.parameters if name not in parameters]:
        raise BatchError(
            f"{notebook}: parameters {missing} are not set",
            expected="the parameters cell to run before lab.begin",
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
        profile: "laptop", "smoke", "paper", or "custom" if the values are those of no profile.
        seed: the parameter `seed` (default 0).
        device: the parameter `device`; "auto" is a CUDA GPU if there is one, else the CPU.
        live: whether a live front end shows the notebook (see `is_live`).
        out: the folder for this run's results.
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
        """Show a figure and save it as NAME.webp (or NAME.png and NAME.svg, if it contains no pixels) and NAME.json.

        Args:
            fig: a matplotlib figure (from `lab.subplots` or `lab.image_grid`).
            name: file name without extension; the notebook's metadata must list it under `makes`.
            alt: a description for readers who cannot see the picture, of at least 30 characters.
            caption: the text under the picture.
            volatile: it shows measurements of the machine that differ from run to run: seconds, peak memory. If nothing
                else in the notebook's results has changed, the batch keeps the earlier measurements.

        Raises:
            InvalidValue: a malformed name, or an alt text that is missing, too short, or repeats the caption.
        """
        shown = figures.save(fig, self._path(name), alt=alt, caption=caption, facts=self._facts(volatile))
        self._made.add(name)
        _display(shown)

    def film(self, name: str, *, alt: str, caption: str) -> None:
        """Show a film that was written to `run.file("NAME.webp")`, such as a turntable, and save NAME.json beside it.

        alt, caption, errors: see `figure`.
        """
        shown = figures.describe_film(
            self._path(name).with_suffix(".webp"), alt=alt, caption=caption, facts=self._facts(False)
        )
        self._made.add(name)
        _display(shown)

    def table(self, df: pd.DataFrame, name: str, *, caption: str, digits: int = 2, volatile: bool = False) -> None:
        """Show a table with `digits` decimals and save it as NAME.csv (full precision), NAME.md and NAME.json.

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
        self.records.add(key, value, unit=unit, paper=paper, n=n, spread=spread, interval=interval, volatile=volatile)

    def record_mean(
        self,
        key: str,
        values: Sequence[float],
        *,
        unit: str = "",
        paper: float | str | None = None,
        volatile: bool = False,
    ) -> None:
        """Record the mean of one number (or paired difference) per image, with its spread and 95 % interval.

        The spread of one value, and the interval of fewer than `stats.ENOUGH`, are None.
        """
        overall = summary(values)
        n, spread = overall.n, overall.spread if overall.n > 1 else None
        interval = (overall.low, overall.high) if n >= ENOUGH else None
        self.record(key, overall.mean, unit=unit, paper=paper, n=n, spread=spread, interval=interval, volatile=volatile)

    def compare(self, prefix: str = "") -> pd.DataFrame:
        """Show the records whose keys start with `prefix` beside the paper's numbers, and return the table."""
        frame = self.records.compare(prefix)
        _display(figures.html_table(frame, caption="", digits=3))
        return frame

    def file(self, name: str) -> Path:
        """A path in this run's folder for a file that other notebooks read; write it with `hrlib.store.atomic`."""
        return store.inside(self.out, name)

    def upstream(self, notebook: str, name: str) -> Path:
        """A file that another notebook wrote; that notebook must be listed in `needs`.

        In a notebook run by hand, this is the file of the other's run by hand, or else that of the batch.

        Raises:
            UnknownName: the notebook is not listed.
            StoreError: it has not written that file yet.
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
            f"{paths[-1]} does not exist", expected=f"a file written by {notebook}", do=f"run {notebook} first"
        )

    def finish(self) -> None:
        """Write records.json, and print what was made and how it differs from `makes` in the metadata."""
        store.write_json(self.out / records.FILE, self.records.rows())
        where = (
            "" if "HRLAB_OUT" in os.environ else f" in {self.out.relative_to(root())}"
        )  # the batch will move the folder
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
            "threads": torch.get_num_threads(),  # sums of floats depend on how they are split among threads
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
