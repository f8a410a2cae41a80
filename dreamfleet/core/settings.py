"""Collects descriptions of settings from the comments beside fields of configuration classes."""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Setting:
    """The description of one setting: name, default, allowed values, meaning and source."""

    name: str  # as in `--set NAME=VALUE`, or a flag
    default: str
    allowed: str  # range or choices, in words; empty: all values of its type
    meaning: str  # with its unit
    source: str = ""  # where the default is from, or the source's own value


def described(config: type, prefix: str) -> list[Setting]:
    """Returns the descriptions of all settings of a configuration dataclass, in field order.

    The comment beside a field gives its meaning and the source of the default. Fields that are
    groups of settings are left out. prefix: text before each name, such as `agent.`.
    """
    meanings, hints = _comments(config), get_type_hints(config)
    return [
        Setting(
            prefix + field.name,
            _shown(field.default),
            _allowed(hints[field.name], field.metadata),
            *_split(meanings.get(field.name, "")),
        )
        for field in fields(config)
        if field.default is not MISSING
    ]


def _split(comment: str) -> tuple[str, str]:
    """Splits a comment into meaning and source: `rows. [a paper]` becomes `Rows`, `a paper`."""
    if comment.endswith("]"):
        comment, _, source = comment[:-1].rpartition(" [")
    else:
        source = ""
    return comment[:1].upper() + comment[1:].rstrip("."), source


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _allowed(hint: Any, metadata: Mapping[str, Any]) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(map(_shown, get_args(hint)))
    if "range" not in metadata:
        return ""
    low, high = metadata["range"]
    return f"from {low} to {high}" if high < float("inf") else f"at least {low}"


def _comments(config: type) -> dict[str, str]:
    """Returns the comment of each field of a dataclass, by field name.

    The comment stands beside the field, or else on the lines above it.
    """
    source = textwrap.dedent(inspect.getsource(config))
    comments = {
        token.start[0]: (token.string.lstrip("# "), token.line.lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        beside = [comments[line][0] for line in lines if line in comments]
        above: list[str] = []
        line = node.lineno - 1
        while line in comments and comments[line][1]:
            above.insert(0, comments[line][0])
            line -= 1
        found[node.target.id] = " ".join(beside or above)
    return found
