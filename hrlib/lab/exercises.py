"""Exercises that check themselves.

An answer that is still `...` is not wrong, so a notebook runs from top to bottom before anybody has touched it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..errors import BatchError, InvalidValue


def check(
    name: str,
    value: Any,
    expected: Any = None,
    *,
    tol: float = 1e-6,
    that: Callable[[Any], bool] | None = None,
    hint: str = "",
    solution: bool = False,
) -> None:
    """Print whether an answer is right.

    Args:
        name: the name of the exercise.
        value: the learner's answer; `...` means not answered yet.
        expected: the right answer: a number, a tensor or array (compared within `tol`, absolute and relative), a
            string, or a list of these.
        tol: tolerance for numbers.
        that: instead of `expected`, a predicate of the value.
        hint: shown with a wrong answer.
        solution: True in solution cells, where a wrong or missing answer is an error in the notebook.

    Raises:
        BatchError: `solution` is True and the answer is wrong or missing.
        InvalidValue: not exactly one of `expected` and `that` is given.
    """
    if (expected is None) == (that is None):
        got = f"check {name!r} with {'neither' if expected is None else 'both'} of `expected` and `that`"
        raise InvalidValue(got, expected="either an expected value or `that`", do="pass exactly one of them")
    answered = value is not ...
    problem = ""
    if answered:
        try:
            right = bool(that(value)) if that is not None else _equal(value, expected, tol)
        except Exception as e:  # the answer may be anything, and the predicate may not be prepared for it
            right, problem = False, f" ({type(e).__name__}: {e})"
    if answered and right:
        print(f"✓ {name}: right.")
        return
    if solution:
        raise BatchError(
            f"the solution of {name!r} gives {value!r}{problem}",
            expected=f"an answer that passes its check{'' if expected is None else f', {expected!r}'}",
            do="correct the solution, or the check",
        )
    if not answered:
        print(f"○ {name}: not answered yet. Replace the dots and run the cell again.")
    else:
        print(f"✗ {name}: not yet{problem}." + (f" Hint: {hint}" if hint else ""))


def _equal(value: Any, expected: Any, tol: float) -> bool:
    if isinstance(expected, str) or isinstance(value, str):
        return value == expected
    a, b = _array(value), _array(expected)
    if a.shape != b.shape:
        raise ValueError(f"shape {a.shape}, expected {b.shape}")
    if a.dtype.kind in "US" or b.dtype.kind in "US":
        return bool((a == b).all())
    return bool(np.allclose(a.astype(float), b.astype(float), rtol=tol, atol=tol))


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
