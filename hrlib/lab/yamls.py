"""YAML that people write by hand: every mistake is one error that names the file and the line.

PyYAML's safe loader builds plain values only, so no file can run code. It lets a key given twice pass, and its nodes
know their lines, hence `_check`; pydantic would see the values alone, when both are lost.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..errors import BatchError


def read(path: Path, *, mappings: int = 0) -> Any:
    """The content of a YAML file; None for an empty one.

    Args:
        path: the file.
        mappings: how many levels, from the top, must be mappings (or empty).

    Raises:
        BatchError: the file cannot be read, is not YAML, has a key twice, or has something else instead of a mapping.
    """
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
    except OSError as e:
        what = f"{path} cannot be read ({e.strerror or e})"
        raise BatchError(what, expected="a YAML file", do="restore it from git") from e
    except (ValueError, yaml.YAMLError) as e:  # ValueError: not UTF-8
        raise _mistake(str(path), str(e)) from e
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, path, mappings, set())
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as e:
        raise _mistake(_place(path, e.problem_mark or e.context_mark), e.problem or str(e)) from e
    except (ValueError, yaml.YAMLError) as e:  # ValueError: an impossible date
        raise _mistake(str(path), str(e)) from e
    finally:
        loader.dispose()


def _check(node: yaml.Node, path: Path, mappings: int, above: set[int]) -> None:
    """Refuse keys given twice, of which PyYAML would use the last, and anything else in the place of a mapping."""
    if id(node) in above:  # an alias of a node that contains it
        raise _mistake(_place(path, node.start_mark), "it contains itself")
    empty = node.tag == "tag:yaml.org,2002:null"
    if mappings > 0 and not isinstance(node, yaml.MappingNode) and not empty:
        raise _mistake(_place(path, node.start_mark), f"{node.value!r} where a mapping belongs")
    seen: dict[Any, yaml.Node] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode) and key.value in seen:
            where = f"{key.value!r} is given twice (first in line {seen[key.value].start_mark.line + 1})"
            raise _mistake(_place(path, key.start_mark), where)
        if isinstance(key, yaml.ScalarNode):
            seen[key.value] = key
        _check(value, path, mappings - 1, above | {id(node)})
    for item in node.value if isinstance(node, yaml.SequenceNode) else ():
        _check(item, path, 0, above | {id(node)})


def _place(path: Path, mark: yaml.Mark | None) -> str:
    return f"{path}, line {mark.line + 1}" if mark else str(path)


def _mistake(where: str, what: str) -> BatchError:
    return BatchError(f"{where}: {what}", expected="YAML, indented with spaces, each key once", do="edit that line")
