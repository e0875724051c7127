"""The house rules: who imports whom, what notebooks may hold, what is documented, how large the repository gets."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from PIL import Image

from hrlib.lab import notebook as notebooks

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "hrlib").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def _id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- imports ----------------------------------------------------------------------------------------------------------

# room -> rooms of hrlib it may import besides itself; a room that is not named here is of the core, or one of `ABOVE`.
BASE = {"errors", "store"}
MAY = {
    "errors": set(),
    "store": {"errors"},
    "image": BASE,
    "weights": BASE | {"image", "nets"},  # strict loading builds the network that a file names
    "nets": BASE,
    "stats": {"errors"},
    "optim": BASE,
    "features": BASE | {"weights", "nets"},
    "losses": BASE | {"image", "weights", "features"},
    "worlds": BASE | {"image", "weights"},  # imagined people are made by a generator
    "spectra": BASE | {"image"},
    "retrieval": BASE | {"image", "stats"},
    "faces": BASE | {"image", "weights", "nets"},
    "fid": BASE | {"image", "weights", "pose"},
    "metrics": BASE | {"image", "weights", "features", "losses", "spectra", "fid", "retrieval"},
    "inversion": BASE | {"image", "losses", "optim"},
    "lso": BASE | {"inversion", "optim"},
    "pivotal": BASE | {"inversion", "optim"},
}
PARTS = {"_colours": "image", "_decode": "image", "_embed": "retrieval", "_lambdas": "losses"}
# The rooms above the core, each with those of them it may import; the core may import none.
ABOVE = {
    "training": set(),
    "lab": set(),
    "experiments": {"lab", "training"},
    "runner": {"lab"},
    "cli": {"lab", "experiments", "runner", "training"},
}


def room(path: Path) -> str:
    name = path.relative_to(ROOT / "hrlib").parts[0].removesuffix(".py")
    return PARTS.get(name, name)


def imported_rooms(path: Path) -> set[str]:
    """The rooms of hrlib that a module imports anywhere in its text, lazily or not."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]  # ("hrlib", "lab")
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{stem}.{a.name}" for a in node.names]
        else:
            continue
        found |= {n.split(".")[1] for n in names if n.startswith("hrlib.")}
    known = {p.relative_to(ROOT / "hrlib").parts[0].removesuffix(".py") for p in MODULES}
    return {PARTS.get(n, n) for n in found & known}


@pytest.mark.parametrize("path", MODULES, ids=_id)
def test_import_rules(path):
    here, found = room(path), imported_rooms(path) - {room(path)}
    if here in MAY:
        assert found <= MAY[here], f"{_id(path)} must not import {sorted(found - MAY[here])}"
    above = found & ABOVE.keys()
    assert above <= ABOVE.get(here, set()), f"{_id(path)} must not import {sorted(above - ABOVE.get(here, set()))}"
    if here == "training":
        assert not found & {"inversion", "mixing", "lso", "directions"}, "training knows nothing of inversion"


CORE = sorted({room(p) for p in MODULES} - ABOVE.keys() - {"__init__"})
OUTSIDE = """
import importlib.machinery, importlib.metadata, pkgutil, re, sys

wanted, modules = {"torch", "timm", "numpy", "pillow", "safetensors", "scikit-image"}, sys.argv[1:]
installed, todo = set(), list(wanted)
while todo:  # and what they bring
    name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
    if name not in installed:
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of another system
        installed.add(name)
        todo += [re.match(r"[\\w.-]+", need)[0] for need in needs if "extra ==" not in need]
homes = importlib.metadata.packages_distributions()
known = {top for top, names in homes.items() if installed & {re.sub(r"[-_.]+", "-", n).lower() for n in names}}


class Installed(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.partition(".")[0]
        absent = top in homes and top not in known | {"hrlib"}
        return None if absent else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Installed
import hrlib

for name in modules:
    package = importlib.import_module(name)
    for found in pkgutil.walk_packages(getattr(package, "__path__", []), f"{name}."):
        if found.name != "hrlib.weights.download":  # imported when something is downloaded
            importlib.import_module(found.name)
"""


def test_the_core_is_importable_with_six_packages_alone():
    """torch, timm, NumPy, Pillow, safetensors and scikit-image, with what they bring; `training` may need more.

    Functions import more where they need it: lpips, pandas, scipy, torch-fidelity, tifffile, psutil, filelock, PyYAML.
    """
    names = [f"hrlib.{name}" for name in CORE]
    done = subprocess.run([sys.executable, "-c", OUTSIDE, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    absent = subprocess.run([sys.executable, "-c", OUTSIDE, "hrlib.lab.plots"], capture_output=True, text=True)
    assert "No module named 'matplotlib'" in absent.stderr, "the test would notice"


def test_the_rules_see_imports():
    """The test above would notice: known imports are found in both spellings."""
    assert {"errors", "store"} <= imported_rooms(ROOT / "hrlib/lab/session.py")
    assert "training" in imported_rooms(ROOT / "hrlib/cli/methods.py")
    assert "errors" in imported_rooms(ROOT / "hrlib/store.py")


def test_the_command_line_starts_without_the_heavy_libraries():
    heavy = {"torch", "matplotlib", "pandas", "timm", "papermill"}
    code = f"import sys, hrlib.cli, hrlib.runner.batch, hrlib.runner.report; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_import_hrlib_loads_nothing_else():
    """So it takes no time of its own; torch comes with the room that computes, matplotlib with the plots."""
    code = (
        "import sys; import hrlib, hrlib.errors, hrlib.lab, hrlib.cli; print(*{m.split('.')[0] for m in sys.modules})"
    )
    bare = "import sys, typer; print(*{m.split('.')[0] for m in sys.modules})"
    run = lambda code: set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split())
    assert run(code) - run(bare) - set(sys.stdlib_module_names) == {"hrlib"}


# --- notebooks --------------------------------------------------------------------------------------------------------


@cache
def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(path: Path) -> list[dict]:
    return [c for c in load(path)["cells"] if c["cell_type"] == "code"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=_id)
class TestNotebook:
    def test_is_stored_without_outputs_and_runs_on_python3(self, path):
        assert load(path)["metadata"]["kernelspec"]["name"] == "python3"
        assert "widgets" not in load(path)["metadata"], "widget state is an output"
        for cell in code_cells(path):
            assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]

    def test_cells_have_ids_of_their_own(self, path):
        assert (load(path)["nbformat"], load(path)["nbformat_minor"]) >= (4, 5)
        ids = [cell["id"] for cell in load(path)["cells"]]
        assert len(set(ids)) == len(ids)

    def test_cells_are_short_and_self_contained(self, path):
        for cell in code_cells(path):
            text = source(cell)
            assert len(text.splitlines()) <= 25, f"{cell['id']}: {len(text.splitlines())} lines"
            assert not re.search(r"^\s*[!%]", text, re.M), f"{cell['id']}: shell or magic command"
            absolute = r"""["'](/(home|work|tmp|Users|mnt|data)\b|[A-Z]:\\)"""
            assert not re.search(absolute, text), f"{cell['id']}: absolute path"
            assert not re.search(r"https?://|urlopen|requests\.|urlretrieve", text), f"{cell['id']}: fetches something"
            assert not re.search(r"\bpyplot\b|\bplt\.", text), f"{cell['id']}: pyplot; use lab.subplots"
            assert not re.search(r"\bif\b.*\bprofile\s*==", text), f"{cell['id']}: branches on the profile"

    def test_begins_and_ends_as_all_do(self, path):
        begin = [i for i, c in enumerate(code_cells(path)) if "lab.begin(" in source(c)]
        assert tags(code_cells(path)[0]) == ["parameters"] and begin == [1]
        assert f'lab.begin("{path.stem}", globals())' in source(code_cells(path)[1])
        assert source(code_cells(path)[-1]).strip().endswith("run.finish()")

    def test_metadata_and_parameters_can_be_read(self, path):
        nb = notebooks.read(path)
        assert {"seed", "device"} <= set(nb.parameters)
        pinned = notebooks.profiles()[nb.name]["laptop"]
        assert json.dumps(dict(nb.cell)) == json.dumps(pinned), "the cell and profiles.yaml hold the same laptop values"
        assert nb.section and nb.makes and {"laptop", "paper"} <= set(nb.minutes)
        assert set(nb.needs) <= {p.stem for p in NOTEBOOKS}
        text = "\n".join(nb.code)
        assert [m for m in nb.makes if f'"{m}"' not in text] == [], "every name in `makes` is in the code"

    def test_has_a_header_a_widget_and_two_exercises_with_solutions(self, path):
        first = load(path)["cells"][0]
        assert first["cell_type"] == "markdown" and source(first).startswith(f"# {path.stem[:2]}")
        assert any("lab.Live(" in source(c) for c in code_cells(path))
        exercises = [c for c in code_cells(path) if "exercise" in tags(c)]
        solutions = [c for c in code_cells(path) if "solution" in tags(c)]
        assert len(exercises) >= 2 and len(solutions) >= len(exercises)
        assert all("lab.check(" in source(c) for c in exercises)
        assert all("solution=True" in source(c) and c["metadata"]["jupyter"]["source_hidden"] for c in solutions)


def test_profiles_fit_the_notebooks():
    known = notebooks.catalogue()
    for profile in notebooks.PROFILES:
        notebooks.effective(profile, known)


# --- documentation ----------------------------------------------------------------------------------------------------


def undocumented(path: Path) -> list[str]:
    found = []

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or node.name.startswith("_"):
                continue
            small = isinstance(node, ast.FunctionDef) and node.name in ("forward", "find_spec")  # their class says it
            if not ast.get_docstring(node) and not small:
                found.append(f"{prefix}{node.name}")
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")
            elif not path.name.startswith("_") and any(
                a.annotation is None for a in node.args.args[bool(prefix) :] + node.args.kwonlyargs
            ):
                found.append(f"{prefix}{node.name} (type hints)")

    visit(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return found


@pytest.mark.parametrize("path", MODULES, ids=_id)
def test_public_functions_are_documented_and_typed(path):
    assert undocumented(path) == []


@pytest.mark.parametrize("path", MODULES, ids=_id)
def test_files_are_readable_in_one_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


# --- the repository ---------------------------------------------------------------------------------------------------


@cache
def tracked() -> tuple[Path, ...]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git clone")
    return tuple(p for name in listed.stdout.split("\0") if name and (p := ROOT / name).is_file())


def megabytes(folder: str = ".") -> float:
    return sum(p.stat().st_size for p in tracked() if p.is_relative_to(ROOT / folder)) / 1e6


def test_the_repository_can_be_carried():
    assert [_id(p) for p in tracked() if p.stat().st_size > 16e6] == []
    limits = {".": 100, "figures": 15, "tests/fixtures": 10, "data/panorama": 3}
    assert {folder: round(mb, 1) for folder in limits if (mb := megabytes(folder)) > limits[folder]} == {}


def test_pictures_are_as_wide_as_a_reader_looks():
    made = [p for p in tracked() if p.is_relative_to(ROOT / "figures")]
    assert [_id(p) for p in made if p.suffix == ".svg" and b"<image" in p.read_bytes()] == [], "pixels in an SVG"
    assert [_id(p) for p in made if p.suffix in (".png", ".webp") and Image.open(p).width > 1400] == []


def pins() -> dict[str, str]:
    text = (ROOT / "requirements.lock").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = dict(line.split("==") for line in lines)
    assert len(found) == len(lines)
    return found


def names(requirements: list[str]) -> dict[str, str]:
    """Normalised name -> version specifier."""
    split = [re.fullmatch(r"([\w.-]+)(.*)", r).groups() for r in requirements]
    return {re.sub(r"[-_.]+", "-", name).lower(): rest for name, rest in split}


def wanted() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [r for group in project["optional-dependencies"].values() for r in group]
    return names(project["dependencies"] + extras)


def test_lock_pyproject_and_conda_agree():
    lock = pins()
    assert all(re.fullmatch(r"[0-9][0-9A-Za-z.]*", v) for v in lock.values()), "plain versions, no local build tags"
    assert not [n for n in lock if re.match(r"nvidia|triton|cuda", n)], "pip brings these with torch where they fit"
    for name, specifier in wanted().items():
        assert name in lock, f"{name} is in pyproject.toml only: run `make lock`"
        assert specifier in ("", f"=={lock[name]}")
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(d["pip"] for d in conda["dependencies"] if isinstance(d, dict))
    assert "-r requirements.lock" in pip, "one list of pins, not two"


def test_names_of_lab_do_not_hide_behind_its_modules():
    """`lab.pictures` would be the module of that name as soon as anybody had imported it."""
    from hrlib import lab

    assert not set(lab.__all__) & {path.stem for path in MODULES if path.parent.name == "lab"}


def test_every_import_is_declared():
    files = [*MODULES, *sorted((ROOT / "tests").glob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py"))]
    sources = {_id(p): p.read_text(encoding="utf-8") for p in files}
    sources |= {_id(p): "\n".join(source(c) for c in code_cells(p)) for p in NOTEBOOKS}
    beside = {p.stem for folder in ("tests", "benchmarks") for p in (ROOT / folder).glob("*.py")}  # what they share
    known, missing = packages_distributions(), {}
    faces = {"dlib"}  # of `make faces`, and imported when it is used; its distribution is dlib-bin
    for where, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                tops = {a.name.split(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                tops = {node.module.split(".")[0]}
            else:
                continue
            for top in tops - set(sys.stdlib_module_names) - {"hrlib", "google"} - beside - faces:
                if not set(names(known.get(top, [top]))) & set(wanted()):
                    missing.setdefault(top, where)
    assert missing == {}, "imported, but not in pyproject.toml"
