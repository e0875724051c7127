"""The front page is true: its blocks run as printed, in order, and the commands that it, or a message, names exist."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from hrlib.cli import app
from hrlib.lab import notebook
from hrlib.training.cli import app as training

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.M | re.S)

# What is changed before a block runs, so that it takes seconds; everything else runs as printed.
SHORTER = (
    (r"\b(num_steps|pose_steps|latent_steps)=\d+", r"\1=2"),
    (r"--num-steps \d+", "--num-steps 2"),
    (r"--size 6143x1677", "--size 352x96"),
    (r"inputs=\[32, 128\]", "inputs=[32]"),
    (r"workers=2", "workers=1"),  # still a process of its own, which imports the script
)
# What cannot run here is parsed: the commands and options exist, the modules are there, the syntax is right.
PARSED = {
    "git clone": "the network",
    "cd hrinversion": "the clone",
    "make": "minutes; continuous integration runs them",
    "source .venv": "the environment of `make setup`",
    "hrlab align": "needs `make faces`",
    "hrlab invert my/faces": "needs `make faces`",
    "hrlab run": "minutes; tests/test_notebooks.py runs every notebook",
    "hrlab compare": "needs a commit; tests/test_compare.py runs it",
    "hrlab doctor": "says what this machine lacks",
    "hrlab fetch": "a download",
    "hrlab convert": "needs what was downloaded",
    "hrlab train": "hours",
}
ABSENT = {"dask_jobqueue"}  # the reader installs it


def commands(text: str) -> list[str]:
    """The lines of a shell block without their comments."""
    return [line for line in (shlex.join(shlex.split(text, comments=True)) for text in text.splitlines()) if line]


def parse(line: str) -> None:
    """Fails unless the command and its options exist; nothing runs."""
    program, *rest = shlex.split(line)
    if program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.M), line
    elif program == "hrlab":
        parse_hrlab(rest)
    elif (program, rest[0]) == ("python", "-m"):
        source = Path(importlib.util.find_spec(rest[1]).origin).read_text(encoding="utf-8")
        assert all(f'"{word}"' in source for word in rest[2:] if word.startswith("--")), line
    else:
        assert program in ("git", "cd", "source"), f"nothing here knows {line!r}"


@cache
def tree() -> Any:
    """The command `hrlab`, with those of `hrlab train` in their place."""
    top = typer.main.get_command(app)
    top.commands["train"] = typer.main.get_command(training)
    return top


def resolve(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the words begin with, and the rest of them."""
    command, rest = tree(), list(words)
    while hasattr(command, "commands"):
        assert rest and rest[0] in command.commands, f"no command {' '.join(words)!r}"
        command = command.commands[rest.pop(0)]
    return command, rest


def parse_hrlab(words: list[str]) -> None:
    command, rest = resolve(words)
    command.make_context(f"hrlab {command.name}", rest)  # raises for an unknown option or a missing argument


def options(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


def imports_exist(source: str) -> None:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module not in ABSENT:
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                assert hasattr(module, name) or importlib.util.find_spec(f"{node.module}.{name}"), (node.module, name)


def perform(line: str, folder: Path) -> None:
    """Run a command as in a shell in `folder`."""
    program, *rest = shlex.split(line)
    if program == "hrlab":
        done = CliRunner().invoke(app, rest, catch_exceptions=False)
        assert done.exit_code == 0, f"{line}\n{done.output}"
    else:
        assert (program, rest[0][-3:]) == ("python", ".py"), f"nothing here knows {line!r}"
        done = subprocess.run([sys.executable, *rest], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_blocks_run_in_order_in_a_fresh_clone(tmp_path, monkeypatch):
    """As a reader goes through the page: one shell, one interpreter, in the folder of the clone."""
    for name in ("notebooks", "data", "figures", "requirements.lock", "hrlib"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HRLAB_ROOT", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    session: dict[str, object] = {"__name__": "__main__"}
    assert {kind for kind, _ in BLOCKS} == {"bash", "python"} and len(BLOCKS) > 15
    for kind, text in BLOCKS:
        for long, short in SHORTER:
            text = re.sub(long, short, text)
        if kind == "bash":
            for line in commands(text):
                run = not line.startswith(tuple(PARSED))
                perform(line, tmp_path) if run else parse(line)
        elif script := re.match(r"# (\S+\.py)\n", text):  # one to save, for a command below it
            Path(script[1]).write_text(text)
        elif any(name in text for name in ABSENT):
            imports_exist(text)
        else:
            exec(compile(text, f"README.md: {text.splitlines()[0]}", "exec"), session)
    left = {p.relative_to(tmp_path).as_posix() for p in tmp_path.glob("my/*")}
    made = ("face.safetensors", "face.png", "stylised", "report", "panorama", "head.ply", "view.png", "first_run.png")
    assert {f"my/{name}" for name in made} <= left
    assert "my/lake" not in left, "a plan makes nothing"


def test_what_is_only_parsed_is_on_the_page():
    lines = [line for kind, text in BLOCKS if kind == "bash" for line in commands(text)]
    assert [start for start in PARSED if not any(line.startswith(start) for line in lines)] == []
    assert [long for long, _ in SHORTER if not re.search(long, README)] == []


def test_links_of_the_page_lead_somewhere():
    links = re.findall(r"\]\(([^)#\s]+)\)", README)
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_minutes_of_all_figures():
    said = int(re.search(r"about (\d+) minutes on two cores", README)[1])
    assert said == pytest.approx(sum(nb.minutes["laptop"] for nb in notebook.catalogue().values()), rel=0.15)


def test_conda_reads_what_pip_reads():
    """pip refuses a requirements file, which is what conda makes of the list, with options such as --no-deps in it."""
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert next(d["pip"] for d in conda["dependencies"] if isinstance(d, dict)) == ["-r requirements.lock", "-e ."]


@pytest.mark.parametrize("page", ["data/README.md", "docs/index.md"])
def test_commands_of_the_other_pages(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for line in commands("\n".join(re.findall(r"^ {4}((?:hrlab|make|python -m) .*)$", text, re.M))):
        parse(line)
    for target in re.findall(r"`make ([a-z]+)`", text):
        parse(f"make {target}")


PLACES = [
    *(ROOT / name for name in ("README.md", "data/README.md", "docs/index.md", "data/weights/catalogue.json")),
    *sorted((ROOT / "data/weights").glob("*.md")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
    *sorted((ROOT / "hrlib").rglob("*.py")),
]


def test_every_command_that_is_named_anywhere_exists():
    """In prose, in model cards, in the messages of errors: `hrlab COMMAND ... --option ...`."""
    named, wrong = 0, []
    for path in PLACES:
        for quote, text in re.findall(r"(.)\bhrlab ([a-z][^`\n]*)", path.read_text(encoding="utf-8")):
            text = re.split(r", then|; |\. |\bhrlab\b", text)[0]
            words = re.match(r"[a-z][a-z0-9-]*(?: [a-z][a-z0-9-]*)?", text)[0].split()
            if quote != "`" and words[0] not in tree().commands:
                continue  # prose, such as "hrlab has"
            named += 1
            command: Any = tree()
            while words and hasattr(command, "commands"):
                word = words.pop(0)
                if word not in command.commands:
                    wrong.append(f"{path.relative_to(ROOT)}: hrlab {text}")
                    break
                command = command.commands[word]
            else:
                strange = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text)) - options(command)
                wrong += [f"{path.relative_to(ROOT)}: hrlab {text} ({option})" for option in sorted(strange)]
    assert wrong == [] and named > 40


def test_every_command_and_option_of_hrlab_has_help():
    def visit(command: Any, name: str) -> None:
        assert command.help, name
        for sub, child in getattr(command, "commands", {}).items():
            if child.name != "train":
                visit(child, f"{name} {sub}")
        lacking.extend(f"{name} {p.opts[0]}" for p in command.params if not getattr(p, "help", None))

    lacking: list[str] = []
    visit(typer.main.get_command(app), "hrlab")
    assert lacking == []
