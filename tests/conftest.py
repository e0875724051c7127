from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: several test processes share the machine's cores

import pytest
import warm

import hrlib  # noqa: F401 - before timm, which a test file may import first

SLOW = ("test_notebooks", "test_readme", "test_sweep", "test_tiling", "test_gan", "test_stylists", "test_batch")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that no process waits for another at the end."""
    items.sort(key=lambda item: SLOW.index(item.path.stem) if item.path.stem in SLOW else len(SLOW))


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository of notebooks that the lab takes for its own, and the current directory."""
    for name in ("notebooks", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "requirements.lock").write_text("numpy==0\n")
    monkeypatch.setenv("HRLAB_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("HRLAB_OUT", "HRLAB_PROFILE", "HRLAB_LIVE", "HRLAB_UPSTREAM", "JPY_SESSION_NAME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def fork() -> Iterator[Callable[[pytest.MonkeyPatch], None]]:
    """Makes this process fork `python -m hrlib...` and the kernels of notebooks from a warm one (see warm.py)."""
    with warm.server() as use:
        yield use


@pytest.fixture
def forked(fork: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """`fork` for one test."""
    fork(monkeypatch)


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


@pytest.fixture(scope="session")
def tiny_in() -> Callable[..., str]:
    """Write a Style-INR-GAN of 32 pixels with random weights: (folder, seed, changes of its config) -> its file."""

    def write(folder: Path, seed: int, **changes: Any) -> str:
        import torch

        from hrlib import nets, weights

        torch.manual_seed(seed)
        config = dict(
            z_dim=8, w_dim=8, resolution=32, channels={4: 8, 8: 8, 16: 8, 32: 8}, mapping_layers=2, inr_hidden=8
        )
        net = nets.StyleINR(**{**config, **changes})
        return str(weights.save_network(net, folder / f"tiny{seed}.safetensors", force=True))

    return write


@pytest.fixture
def tiny(tmp_path: Path, tiny_in: Callable[..., str]) -> Callable[..., str]:
    """`tiny_in` the test's own folder: (seed, changes of its configuration) -> its file."""
    return lambda seed, **changes: tiny_in(tmp_path, seed, **changes)


@pytest.fixture(scope="session")
def stage_of(tmp_path_factory: pytest.TempPathFactory, tiny_in: Callable[..., str]) -> Callable[..., Any]:
    """Invert contents and styles in tiny networks, for tests that only read them: (contents, styles) -> a stage."""

    def prepare(contents: list[str], styles: list[str]) -> Any:
        from hrlib.experiments import syntheses

        with pytest.MonkeyPatch.context() as patch:
            folder = tmp_path_factory.mktemp("stage")
            (folder / "notebooks").mkdir()
            patch.setenv("HRLAB_ROOT", str(folder))
            patch.chdir(folder)
            targets = {"cartoon": {"generator": tiny_in(folder, 2), "styles": styles}}
            source = tiny_in(folder, 1)
            return syntheses.prepare(contents, targets, source=source, perceptual="shipped", num_steps=2)

    return prepare
