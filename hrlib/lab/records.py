"""The numbers that notebooks record, in one tidy form: key, value, unit, n, spread, and the paper's value."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import store
from ..errors import InvalidValue, StoreError, UnknownName, number

if TYPE_CHECKING:
    import pandas as pd

FILE = "records.json"
KEY = re.compile(r"[a-z0-9_.+-]+(/[a-z0-9_.+-]+)*")


class Records:
    """The numbers of one run. A key recorded twice keeps the later value, so that a cell can be run again."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(
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
        """Record a number.

        Args:
            key: lower-case words separated by "/", e.g. "psnr/conv/full/portrait0".
            value: a finite number (or a one-element tensor), a truth value or a string.
            unit: e.g. "dB".
            paper: the paper's value of the same quantity, in the same unit.
            n: the number of images or runs that `value` is a mean of.
            spread: the standard deviation over those n.
            interval: the 95 % interval of that mean.
            volatile: a measurement of the machine that differs from run to run: seconds, peak memory.

        Raises:
            InvalidValue: a malformed key, a value that is not finite, or an invalid n, spread or interval.
        """
        if not KEY.fullmatch(key):
            raise InvalidValue(
                f"record key {key!r}",
                expected='lower-case letters, digits and _ . + -, in parts separated by "/"',
                do='use a key such as "psnr/conv/full/portrait0"',
            )
        self._rows[key] = {
            "key": key,
            "value": _plain(key, "value", value),
            "unit": unit,
            "n": number(f"{key}: n", n, "whole [1, inf)"),
            "spread": None if spread is None else number(f"{key}: spread", spread, "[0, inf)"),
            "interval": None
            if interval is None
            else [number(f"{key}: interval", end, "(-inf, inf)") for end in interval],
            "paper": None if paper is None else _plain(key, "paper", paper),
            "volatile": volatile,
        }

    def rows(self) -> list[dict[str, Any]]:
        """The records, sorted by key."""
        return [self._rows[key] for key in sorted(self._rows)]

    def compare(self, prefix: str = "") -> pd.DataFrame:
        """Our values beside the paper's for the keys that start with `prefix`, in the order of recording.

        Raises:
            UnknownName: no recorded key starts with it.
        """
        import pandas as pd

        rows = [row for key, row in self._rows.items() if key.startswith(prefix)]
        if not rows:
            raise UnknownName(
                f"no record starts with {prefix!r}",
                expected=f"a prefix of one of {list(self._rows)}",
                do="call run.record before run.compare",
            )
        table = []
        for row in rows:
            both = all(isinstance(row[k], (int, float)) and not isinstance(row[k], bool) for k in ("value", "paper"))
            table.append(
                {
                    "key": row["key"],
                    "ours": row["value"],
                    "± over n": "" if row["spread"] is None else f"{row['spread']:.3g}",
                    "95 %": "" if row["interval"] is None else "[{:.3g}, {:.3g}]".format(*row["interval"]),
                    "n": row["n"],
                    "paper": "" if row["paper"] is None else row["paper"],
                    "ours − paper": row["value"] - row["paper"] if both else "",
                    "unit": row["unit"],
                }
            )
        return pd.DataFrame(table).set_index("key")


def read(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The records that a run left in `folder`, by key; older runs recorded no interval.

    Raises:
        StoreError: the file is damaged, or not a list of records.
    """
    path = Path(folder) / FILE
    return parse(store.read_json(path), path)


def parse(rows: Any, where: str | Path) -> dict[str, dict[str, Any]]:
    """What `run.finish()` wrote into a file of records, by key.

    where: of the file, for the error.

    Raises:
        StoreError: as `read`.
    """
    records = Records()
    try:
        for row in rows:
            records.add(**row)
    except (TypeError, InvalidValue) as e:
        what = f"{where} is not a list of records ({e})"
        raise StoreError(what, expected="the file that run.finish() wrote", do="run the notebook again") from e
    return {row["key"]: row for row in records.rows()}


def _plain(key: str, what: str, value: Any) -> float | int | bool | str:
    if hasattr(value, "item"):  # numpy and torch scalars
        value = value.item()
    if isinstance(value, (bool, str)) or (isinstance(value, (int, float)) and math.isfinite(value)):
        return value
    raise InvalidValue(
        f"record {key!r}: {what} = {value!r}",
        expected="a finite number, a truth value or a string",
        do="find out why it is not finite before recording it",
    )
