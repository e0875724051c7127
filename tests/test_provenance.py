"""Provenance: what makes a result stale, and what does not."""

from __future__ import annotations

import json
import os
import textwrap
from pathlib import Path

import pytest

import hrlib
from hrlib.lab import notebook, place, provenance
from hrlib.lab.provenance import Hashes, closure, code, imported
from hrlib.runner import cache

FUNCTION = '''
"""A module."""

class Optimiser:
    """Of ours."""

def step(x, lr=0.1):
    """One step."""
    total = x + lr  # the rule
    return total
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # the rule", "  # a better comment"),
        ("  # the rule", ""),
        ('"""One step."""', '"""One step of size `lr`."""'),
        ('    """One step."""\n', ""),
        ('"""A module."""\n', ""),
        ('    """Of ours."""', "    pass"),
        ("x + lr", "(\n        x\n        + lr\n    )"),
        ("\n\ndef", "\n\n\n\ndef"),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(old, new):
    assert old in FUNCTION and code(FUNCTION.replace(old, new)) == code(FUNCTION)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lr=0.1", "lr=0.2"),
        ("x + lr", "x - lr"),
        ("total", "sum"),
        ("lr=0.1", "*, lr=0.1"),
        ("return total", "'not a docstring'"),
    ],
)
def test_everything_else_counts(old, new):
    assert old in FUNCTION and code(FUNCTION.replace(old, new)) != code(FUNCTION)


def test_cells_that_are_not_python_count_as_they_stand_and_may_import_anything():
    assert code("!ls\nx = 1") != code("!ls\nx = 1  # one") and code("a\0b") != code("a\0c")
    everything = set(provenance.LIBRARY.rglob("*.py"))
    assert set(imported("%matplotlib inline\nfrom hrlib import lab")) == set(imported("x\0")) == everything
    assert imported("import numpy as np\nfrom pathlib import Path\nx = 1") == ()


# --- a library of our own ---------------------------------------------------------------------------------------------

FILES = {
    "__init__.py": "",
    "errors.py": "",
    "store.py": "from .errors import StoreError",
    "nets/__init__.py": "from . import generator",
    "nets/generator.py": "from .. import store",
    "nets/unused.py": "",
    "lab/__init__.py": """
        HOME = {"begin": ".session", "picture": "..pictures"}
        def __getattr__(name):
            return getattr(import_module(HOME[name], __name__), name)
    """,
    "lab/session.py": "def begin():\n    from ..nets.generator import G",
    "lab/diagrams.py": "",
    "pictures.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import hrlib.errors",
}


@pytest.fixture
def library(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "hrlib"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
    monkeypatch.setattr(provenance, "LIBRARY", folder)
    return folder


def reached(library: Path, cell: str, **how: Path) -> set[str]:
    return {path.relative_to(library).as_posix() for path in closure(imported(cell), **how)}


@pytest.mark.parametrize(
    ("cell", "files"),
    [
        ("from hrlib import errors", {"__init__.py", "errors.py"}),
        ("import hrlib.store as s", {"__init__.py", "errors.py", "store.py"}),
        ("import torch", set()),
        ("from .store import x", set()),
    ],
)
def test_a_module_counts_with_its_packages_and_what_it_imports(library, cell, files):
    assert reached(library, cell) == files


def test_a_package_counts_with_what_its_own_file_imports(library):
    nets = {"__init__.py", "errors.py", "store.py", "nets/__init__.py", "nets/generator.py"}
    assert reached(library, "from hrlib import nets") == nets
    assert reached(library, "from hrlib.nets.unused import x") == nets | {"nets/unused.py"}


def test_what_is_imported_on_first_use_counts(library):
    """In a function (`session` -> `generator`), by the lazy names of a package, for type checkers."""
    lab = set(FILES) - {"nets/unused.py", "lab/diagrams.py"}
    assert reached(library, "def f():\n    from hrlib import lab") == lab
    assert reached(library, "from hrlib.lab import diagrams") == lab | {"lab/diagrams.py"}


def test_a_file_can_be_left_out_with_what_it_alone_imports(library):
    kept = reached(library, "from hrlib import lab", without=library / "lab/session.py")
    assert kept == {"__init__.py", "lab/__init__.py", "pictures.py", "errors.py"}


def test_a_file_that_has_changed_is_read_again(library):
    assert "nets/unused.py" not in reached(library, "from hrlib import store")
    path = library / "store.py"
    path.write_text("from .nets import unused")
    os.utime(path, ns=(1, 1))
    assert "nets/unused.py" in reached(library, "from hrlib import store")


# --- the house --------------------------------------------------------------------------------------------------------


def test_a_module_makes_those_notebooks_stale_that_import_it(monkeypatch):
    notebooks, hashes, read = list(notebook.catalogue().values()), Hashes(), Hashes.of_code
    around = lambda: cache.surroundings(notebooks, hashes, "laptop")
    before, every = around(), {nb.name for nb in notebooks}

    def stale(change: Path, text: str) -> set[str]:
        monkeypatch.setattr(Hashes, "of_code", lambda self, p: code(text) if p == change else read(self, p))
        after = around()
        return {name for name in every if before[name] != after[name]}

    for name, importing in {
        "training/augment.py": {"12_training"},
        "lab/diagrams.py": {"00_start_here", "01_style_inr_gan"},
        "lab/session.py": every,
        "worlds/pictures.py": every,  # `lab.picture`, which `lab` imports on first use
        "runner/batch.py": set(),
    }.items():
        path = provenance.LIBRARY / name
        source = path.read_text(encoding="utf-8")
        assert stale(path, f"{source}\nMORE = 1\n") == importing, name
        assert stale(path, f"# a comment\n{source}") == set(), name


def test_every_module_of_the_library_can_be_followed():
    """All imports of the library resolve, and a package is entered through its own file."""
    files = closure(provenance.LIBRARY.rglob("*.py"))
    assert files == set(provenance.LIBRARY.rglob("*.py")) and Path(hrlib.__file__) in files


def test_hashes_are_kept_for_the_next_process(repo, monkeypatch):
    path = repo / "data/a.bin"
    path.write_bytes(b"1")
    hashes = Hashes()
    first = hashes.of(path)
    hashes.save()
    monkeypatch.setattr(provenance.store, "sha256", lambda path: pytest.fail("read again"))
    assert Hashes().of(path) == first and (place.root() / "build/hashes.json").exists()
    monkeypatch.undo()
    path.write_bytes(b"22")
    assert Hashes().of(path) != first
    for damaged in (b"", b"[]", b"\xff", json.dumps({str(path): 5}).encode(), json.dumps({str(path): []}).encode()):
        (repo / "build/hashes.json").write_bytes(damaged)
        assert Hashes().of(path) != first


def test_kept_hashes_of_code_are_not_those_of_another_rule(repo, monkeypatch):
    path = repo / "module.py"
    path.write_text("x = 1")
    hashes = Hashes()
    hashes.of_code(path)
    hashes.save()
    monkeypatch.setattr(provenance, "code", lambda source: "by another rule")
    assert Hashes().of_code(path) == code("x = 1"), "kept"
    monkeypatch.setattr(provenance, "_rule", lambda: "another rule, or another Python")
    assert Hashes().of_code(path) == "by another rule"


def test_pictures_behind_a_link_count(repo, tmp_path_factory, monkeypatch):
    monkeypatch.delenv("HRLIB_DATA", raising=False)
    photographs = tmp_path_factory.mktemp("photographs")
    (photographs / "sub").mkdir()
    (photographs / "sub/a.png").write_bytes(b"one")
    for link, to in (("data/mylink", photographs), ("data/again", repo / "data"), ("data/none", repo / "nowhere")):
        (repo / link).symlink_to(to)
    (photographs / "sub/loop").symlink_to(photographs)
    before = cache._data(Hashes(), shipped_alone=False)
    assert list(before) == ["mylink/sub/a.png"]
    (photographs / "sub/a.png").write_bytes(b"another")
    assert cache._data(Hashes(), shipped_alone=False) != before
