"""What a notebook needs around the science: `from hrlib import lab`.

The names below are imported on first use: the command line uses other parts of this package and should not wait for
torch and matplotlib.
"""

from __future__ import annotations

import importlib

_HOME = {
    "begin": ".session",
    "Run": ".session",
    "root": ".place",
    "COLOURS": ".plots",
    "forest": ".plots",
    "heat": ".plots",
    "image_grid": ".plots",
    "subplots": ".plots",
    "progress": ".progress_bar",
    "picture": "..worlds.pictures",
    "pictures": "..worlds.pictures",
    "listed": "..worlds.pictures",
    "Live": ".widgets",
    "check": ".exercises",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'hrlib.lab' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
