from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: several test processes share the machine's cores

import pytest


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository of notebooks that the lab takes for its own."""
    for name in ("notebooks", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "requirements.lock").write_text("numpy==0\n")
    monkeypatch.setenv("HRLAB_ROOT", str(tmp_path))
    for name in ("HRLAB_OUT", "HRLAB_PROFILE", "HRLAB_LIVE", "HRLAB_UPSTREAM", "JPY_SESSION_NAME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def write_notebook(repo: Path) -> Callable[..., Path]:
    """Write a notebook into the repository: (name, parameters cell, other code cells, **metadata)."""

    def write(name: str, parameters: str, cells: Sequence[str], **hrlab: Any) -> Path:
        meta = {"title": name, "section": "", "makes": [], "needs": [], "minutes": {"laptop": 1}, **hrlab}
        content = {
            "nbformat": 4,
            "nbformat_minor": 5,
            "metadata": {
                "hrlab": meta,
                "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
                "language_info": {"name": "python"},
            },
            "cells": [
                {
                    "cell_type": "code",
                    "id": f"c{i}",
                    "metadata": {"tags": ["parameters"]} if i == 0 else {},
                    "execution_count": None,
                    "outputs": [],
                    "source": source,
                }
                for i, source in enumerate([parameters, *cells])
            ],
        }
        path = repo / "notebooks" / f"{name}.ipynb"
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., str]:
    """Write a Style-INR-GAN of 32 pixels with random weights: (seed, changes of its configuration) -> its file."""

    def write(seed: int, **changes: Any) -> str:
        import torch

        from hrlib import nets, weights

        torch.manual_seed(seed)
        config = dict(
            z_dim=8, w_dim=8, resolution=32, channels={4: 8, 8: 8, 16: 8, 32: 8}, mapping_layers=2, inr_hidden=8
        )
        return str(weights.save_network(nets.StyleINR(**{**config, **changes}), tmp_path / f"tiny{seed}.safetensors"))

    return write
