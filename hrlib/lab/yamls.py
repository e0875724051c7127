"""YAML that people write by hand: every slip is one error that names the file and the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..errors import BatchError


def read(path: Path, *, mappings: int = 0) -> Any:
    """The content of a YAML file; None for an empty one.

    Args:
        path: the file.
        mappings: so many levels, from the top, must be mappings (an empty entry is one).

    Raises:
        BatchError: the file cannot be read, is no YAML, names a key twice, or lacks such a mapping.
    """
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
    except OSError as e:
        what = f"{path} cannot be read ({e.strerror or e})"
        raise BatchError(what, expected="a file of YAML", do="restore it from git") from e
    except (ValueError, yaml.YAMLError) as e:  # ValueError: not UTF-8
        raise _slip(str(path), str(e)) from e
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, path, mappings, set())
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as e:
        raise _slip(_place(path, e.problem_mark or e.context_mark), e.problem or str(e)) from e
    except (ValueError, yaml.YAMLError) as e:  # ValueError: a date that there is not
        raise _slip(str(path), str(e)) from e
    finally:
        loader.dispose()


def _check(node: yaml.Node, path: Path, mappings: int, above: set[int]) -> None:
    """Refuse a key given twice, which YAML libraries let pass (the last one counts), and what is no mapping."""
    if id(node) in above:  # an alias of a node around it
        raise _slip(_place(path, node.start_mark), "it contains itself")
    empty = node.tag == "tag:yaml.org,2002:null"
    if mappings > 0 and not isinstance(node, yaml.MappingNode) and not empty:
        raise _slip(_place(path, node.start_mark), f"{node.value!r} where a mapping belongs")
    seen: dict[Any, yaml.Node] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode) and key.value in seen:
            where = f"{key.value!r} is given twice (first in line {seen[key.value].start_mark.line + 1})"
            raise _slip(_place(path, key.start_mark), where)
        if isinstance(key, yaml.ScalarNode):
            seen[key.value] = key
        _check(value, path, mappings - 1, above | {id(node)})
    for item in node.value if isinstance(node, yaml.SequenceNode) else ():
        _check(item, path, 0, above | {id(node)})


def _place(path: Path, mark: yaml.Mark | None) -> str:
    return f"{path}, line {mark.line + 1}" if mark else str(path)


def _slip(where: str, what: str) -> BatchError:
    return BatchError(f"{where}: {what}", expected="YAML, indented with spaces, each key once", do="correct that line")
