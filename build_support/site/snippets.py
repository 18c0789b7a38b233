"""Code that pages show and do not hold: parts of a program, or the difference between two.

<!-- code: examples/two_ranks.py run_rank -->                    one function or class
<!-- code: examples/own_scores/thirds.cpp all -->                a whole program in C++
<!-- diff: examples/sasrec/plain.py examples/sasrec/with_ops.py -->    without the description at the top
"""

from __future__ import annotations

import ast
import difflib
import re
from pathlib import Path

SNIPPET = re.compile(r"^<!-- (code|diff): (\S+) (\S+) -->$", re.MULTILINE)


def filled(markdown: str, root: Path) -> str:
    """The text with every snippet in its place. Raises ValueError for a file or a name that there is not."""

    def fill(found: re.Match[str]) -> str:
        kind, first, second = found.groups()
        if kind == "code" and first.endswith(".cpp"):
            return f"```cpp\n{_read(root / first).strip()}\n```"
        if kind == "code":
            return f"```python\n{definition(root / first, second)}\n```"
        return f"```diff\n{difference(root / first, root / second)}\n```"

    return SNIPPET.sub(fill, markdown)


def definition(path: Path, name: str) -> str:
    """The source of one function or class of a program."""
    text = _read(path)
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            return ast.get_source_segment(text, node) or ""
    raise ValueError(f"{path} defines no {name}")


def difference(before: Path, after: Path) -> str:
    """The lines of two programs that differ, below their docstrings, with two lines around."""
    old, new = (_read(path).split('"""', 2)[-1].splitlines() for path in (before, after))
    lines = difflib.unified_diff(old, new, before.name, after.name, n=2, lineterm="")
    return "\n".join(line for line in lines if line.strip() not in ("+", "-"))


def _read(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path} does not exist, expected a program to take code from")
    return path.read_text("utf-8")
