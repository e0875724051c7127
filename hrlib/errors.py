"""Every exception that a user can meet.

The class says what is wrong, and the message has three parts: what was found, what was expected, and what to do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

SEED = "whole [0, 4294967295]"  # what numpy's legacy generator takes; torch's takes more


class HRLibError(Exception):
    """Base class of all errors that this library raises on purpose.

    Args:
        got: what was found, with the value or the file name.
        expected: what would have been right.
        do: how to fix it, in one sentence.
    """

    def __init__(self, got: str, *, expected: str, do: str) -> None:
        self.got, self.expected, self.do = got, expected, do
        super().__init__(f"{got}\n  expected: {expected}\n  what to do: {do}")

    def __reduce__(self) -> tuple:  # keyword-only arguments do not survive the default pickling between processes
        return _rebuild, (type(self), self.got, self.expected, self.do)


def _rebuild(kind: type[HRLibError], got: str, expected: str, do: str) -> HRLibError:
    return kind(got, expected=expected, do=do)


class ImageError(HRLibError):
    """A file that is not a picture we can read exactly, or a picture that cannot be written as asked."""


class WeightsError(HRLibError):
    """A problem with a weight file; its subclasses say which."""


class MissingWeights(WeightsError):
    """A weight file of the catalogue that is not on this machine."""


class DamagedFile(WeightsError):
    """A file (weights, codes, a state, a result) whose bytes are not what its catalogue entry or format promises."""


class LayoutMismatch(WeightsError):
    """Weights that do not fit: keys, shapes or an architecture other than the expected ones."""


class HostileCheckpoint(WeightsError):
    """A pickle that asks for something outside the allow-list; nothing in it was executed."""


class ShapeError(HRLibError):
    """A tensor, array or collection of the wrong shape, type or length."""


class InvalidValue(HRLibError, ValueError):
    """A value outside its range, or not finite: of a setting, or of the numbers in a tensor."""


class UnknownName(HRLibError):
    """A name (of a loss, tap, notebook, parameter, weight file, ...) that does not exist."""


class FaceError(HRLibError):
    """A picture in which not exactly one face is found, or one that is too small to be used."""


class NonFiniteLoss(HRLibError):
    """A loss term became NaN or infinite; the error carries the best iterate so far."""


class BudgetError(HRLibError):
    """A computation that does not fit into the memory it may use."""


class StoreError(HRLibError):
    """A file or folder that cannot be used as asked: missing, taken, locked, or not writable."""


class BatchError(HRLibError):
    """A notebook, or a batch of runs, that cannot go on: its file, its results, or its workers."""


def nearest(name: str, valid: list[str]) -> str:
    """The valid name closest in spelling to `name`, as a hint for an error message ("" if none is close)."""
    from difflib import get_close_matches

    close = get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""


def number(name: str, value: Any, interval: str) -> int | float:
    """`value` as a plain int or float, if it lies in `interval`.

    Args:
        name: of the setting or option, for the error.
        value: a number from Python, numpy or torch (one element); not a bool or a string.
        interval: in mathematical notation: "(0, inf)", "[0, 1]"; "whole [1, inf)" accepts whole numbers only (2.0 is
            one).

    Raises:
        InvalidValue: the value is not a number, not finite, not whole, or outside the interval.
    """
    whole, left, low, high, right = re.fullmatch(r"(whole )?([\[(])(\S+), (\S+)([\])])", interval).groups()
    plain = value.item() if hasattr(value, "item") and math.prod(value.shape) == 1 else value
    good = isinstance(plain, (int, float)) and not isinstance(plain, bool) and -math.inf < plain < math.inf
    good = good and (not whole or plain == int(plain))
    good = good and (plain >= float(low) if left == "[" else plain > float(low))
    good = good and (plain <= float(high) if right == "]" else plain < float(high))
    if not good:
        kind = "a whole number" if whole else "a finite number"
        below = "" if low == "-inf" else f"{low} {'<=' if left == '[' else '<'} "
        above = "" if high == "inf" else f" {'<=' if right == ']' else '<'} {high}"
        raise InvalidValue(
            f"{name} = {value!r}",
            expected=f"{kind} in {interval.removeprefix('whole ')}",
            do=f"choose {below}{name}{above}" if below or above else f"choose {kind}",
        )
    return int(plain) if whole else plain


def plain(values: Mapping[str, Any], intervals: Mapping[str, str]) -> dict[str, int | float]:
    """The values as plain numbers, each checked by `number` against the interval of the same name."""
    return {name: number(name, value, intervals[name]) for name, value in values.items()}


def truth(name: str, value: Any) -> bool:
    """`value` as a plain bool; `InvalidValue` unless it is one (of Python or NumPy): "no" would count as true."""
    if type(value).__name__ not in ("bool", "bool_"):
        raise InvalidValue(f"{name} = {value!r}", expected="True or False", do=f"choose {name}=True or {name}=False")
    return bool(value)


def sides(name: str, size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) in whole pixels of a size given as (height, width) or as the edge of a square.

    Raises:
        InvalidValue: a side that is not a whole number above 0, or not two sides.
    """
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2:
        raise InvalidValue(f"{name} = {size!r}", expected="an edge or (height, width)", do="give one or two numbers")
    height, width = (number(name, side, "whole [1, inf)") for side in pair)
    return height, width
