"""Every exception a user can meet.

Each message has the same three parts: what was got, what was expected, and what to do about it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

Record = TypeVar("Record")
SEED = "whole [0, 4294967295]"  # what numpy's legacy generator takes; torch's takes more


class HRLibError(Exception):
    """Base of all errors raised on purpose by this library.

    Args:
        got: what was found, with the value or the file name.
        expected: what would have been right.
        do: one sentence that tells the reader how to go on.
    """

    def __init__(self, got: str, *, expected: str, do: str) -> None:
        self.got, self.expected, self.do = got, expected, do
        super().__init__(f"{got}\n  expected: {expected}\n  what to do: {do}")

    def __reduce__(self) -> tuple:  # keyword-only arguments do not survive the default pickling between processes
        return _rebuild, (type(self), self.got, self.expected, self.do)


def _rebuild(kind: type[HRLibError], got: str, expected: str, do: str) -> HRLibError:
    return kind(got, expected=expected, do=do)


class ImageError(HRLibError):
    """A file is not an image we can read exactly, or a tensor is not in the library's image convention."""


class WeightsError(HRLibError):
    """A weight file is missing, damaged, of another layout, or not allowed."""


class MissingWeights(WeightsError):
    """A catalogued file is not on this machine."""


class DamagedFile(WeightsError):
    """A file's bytes are not those the catalogue or its own header promise."""


class LayoutMismatch(WeightsError):
    """The keys or shapes of a checkpoint are not those of the network it should fill."""


class HostileCheckpoint(WeightsError):
    """A pickle asks for something outside the allow-list; nothing in it was executed."""


class ShapeError(HRLibError):
    """A tensor has the wrong shape, dtype or value range."""


class UnknownName(HRLibError):
    """A name (loss, tap, notebook, parameter, weight) that nothing answers to."""


class InvalidValue(HRLibError, ValueError):
    """A number outside the range in which it means anything, or something that is no number."""


class NonFiniteLoss(HRLibError):
    """A loss term became NaN or infinite; the best iterate so far is kept."""


class BudgetError(HRLibError):
    """A computation that cannot be done in the memory it was given."""


class StoreError(HRLibError):
    """A result could not be written, or a path leaves the folder it must stay in."""


class BatchError(HRLibError):
    """A notebook or its outputs failed validation in a batch run."""


def nearest(name: str, valid: list[str]) -> str:
    """The valid name closest in spelling to `name`, as a hint for an error message ("" when none is close)."""
    from difflib import get_close_matches

    close = get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""


def number(name: str, value: Any, interval: str) -> int | float:
    """`value` as a plain int or float, if it lies in `interval`.

    Args:
        name: of the setting or option, for the error.
        value: a number of Python, numpy or torch (one element); no truth value and no text.
        interval: in the notation of mathematics: "(0, inf)", "[0, 1]"; "whole [1, inf)" takes whole numbers alone
            (2.0 is one).

    Raises:
        InvalidValue: it is no number, not finite, not whole, or outside.
    """
    found = re.fullmatch(r"(whole )?([\[(])(\S+), (\S+)([\])])", interval)
    whole, left, low, high, right = found.groups()
    plain = value.item() if hasattr(value, "item") and math.prod(value.shape) == 1 else value
    good = isinstance(plain, (int, float)) and not isinstance(plain, bool) and -math.inf < plain < math.inf
    good = good and (not whole or plain == int(plain))
    good = good and (plain >= float(low) if left == "[" else plain > float(low))
    good = good and (plain <= float(high) if right == "]" else plain < float(high))
    if not good:
        kind = "a whole number" if whole else "a finite number"
        raise InvalidValue(
            f"{name} = {value!r}", expected=f"{kind} in {interval.removeprefix('whole ')}", do="give one"
        )
    return int(plain) if whole else plain


def numbers(record: Record, **intervals: str) -> Record:
    """`record` (a frozen dataclass) with the fields named in `intervals` checked, and made plain, by `number`."""
    return replace(record, **plain({name: getattr(record, name) for name in intervals}, intervals))


def plain(values: Mapping[str, Any], intervals: Mapping[str, str]) -> dict[str, int | float]:
    """`values` by name, each checked, and made plain, by `number` in the interval of its name."""
    return {name: number(name, value, intervals[name]) for name, value in values.items()}
