"""Numbers that notebooks record, in one tidy form: key, value, unit, n, spread, and the paper's value."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import store
from ..errors import BatchError, InvalidValue, StoreError, number

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
            value: a finite number (a one-element tensor will do), a truth value or a string.
            unit: e.g. "dB".
            paper: what the paper says of the same quantity, in the same unit.
            n: over how many images or runs `value` is a mean.
            spread: standard deviation over those n.
            interval: the 95 % interval of that mean.
            volatile: it was measured on the machine and differs from run to run: seconds, peak memory.

        Raises:
            BatchError: a malformed key, or a value that is not finite.
            InvalidValue: n, spread or interval are no such numbers.
        """
        if not KEY.fullmatch(key):
            raise BatchError(
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
        """Ours beside the paper's for the keys that start with `prefix`, in the order of recording."""
        import pandas as pd

        rows = [row for key, row in self._rows.items() if key.startswith(prefix)]
        if not rows:
            raise BatchError(
                f"no record starts with {prefix!r}",
                expected=f"a beginning of one of {list(self._rows)}",
                do="record first",
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
    """The records that a run left in `folder`, by key; those of older runs had no interval.

    Raises:
        StoreError: the file is damaged, or not a list of records.
    """
    path, found = Path(folder) / FILE, Records()
    try:
        for row in store.read_json(path):
            found.add(**row)
    except (TypeError, BatchError, InvalidValue) as e:
        raise StoreError(
            f"{path} holds no records ({e})", expected="a list of them", do="run the notebook again"
        ) from e
    return {row["key"]: row for row in found.rows()}


def _plain(key: str, what: str, value: Any) -> float | int | bool | str:
    if hasattr(value, "item"):  # numpy and torch scalars
        value = value.item()
    if isinstance(value, (bool, str)) or (isinstance(value, (int, float)) and math.isfinite(value)):
        return value
    raise BatchError(
        f"record {key!r}: {what} = {value!r}",
        expected="a finite number, a truth value or a string",
        do="find out why it is not finite before recording it",
    )
