"""Notebooks made from programs of examples/, so that nothing is written twice."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NOTEBOOKS = {
    "ops_in_plain_torch": ("examples/ops_in_plain_torch.py", ("--steps", "60")),
    "sasrec_with_ops": ("examples/sasrec/with_ops.py", ("--steps", "20")),
}
"""Notebook → the program, and the arguments that its last cell runs it with."""
MAIN = 'if __name__ == "__main__":'
DEFINITION = re.compile(r"(@|def |class )")
TIME_LIMIT = 300
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def can_execute() -> bool:
    """Whether there is a kernel to run notebooks with."""
    return find_spec("nbclient") is not None and find_spec("ipykernel") is not None


def generate(program: Path, arguments: tuple[str, ...]) -> Any:
    """The notebook of a program: its description as text, a cell for each part, and a last cell that runs it.

    Raises ValueError for a program without a docstring or without the call of `main` at its end.
    """
    import jupytext
    from nbformat.v4 import new_code_cell, new_markdown_cell

    notebook = jupytext.read(program, fmt="py:light")
    cells = [cell for cell in notebook.cells if cell.source.strip()]
    if not cells or not cells[0].source.startswith('"""') or not cells[-1].source.startswith(MAIN):
        raise ValueError(f"{program}: expected a docstring first and `{MAIN} main()` last")
    description = cells[0].source.strip().strip('"').strip()
    cells = [cells[0], *_imports_first(cells[1:-1]), cells[-1]]
    run = f"import sys\n\nsys.argv = {[program.name, *arguments]!r}\nmain()"
    notebook.cells = [
        new_markdown_cell(f"# {program.name}\n\n{description}", id="description"),
        *cells[1:-1],
        new_markdown_cell("## Run it", id="heading"),
        new_code_cell(run, id="run"),
    ]
    for number, cell in enumerate(notebook.cells[1:-2]):
        cell["id"] = f"part-{number}"
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return notebook


def _imports_first(cells: list[Any]) -> list[Any]:
    """The cells before the first function or class as one: jupytext cuts imports and constants at empty lines."""
    first = next((at for at, cell in enumerate(cells) if DEFINITION.match(cell.source)), len(cells))
    for cell in cells[1:first]:
        cells[0].source += "\n\n" + cell.source
    return cells[:1] + cells[first:] if first else cells


def execute(notebook: Any, folder: Path) -> None:
    """Runs all cells in `folder` and keeps what they print; nbclient.exceptions.CellExecutionError where one fails."""
    from nbclient import NotebookClient
    from traitlets.config import Config

    settings = Config({"KernelManager": {"transport": "ipc"}})  # the default, TCP, is open to other users
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, config=settings, timeout=TIME_LIMIT, kernel_name="python3", resources=resources).execute()


def page(notebook: Any, name: str) -> str:
    """The notebook as a page of the site, with a link to the notebook itself."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        printed = "".join(one.get("text", "") for one in cell.get("outputs", []))
        if printed.strip():
            parts.append(f"```text\n{ANSI.sub('', printed).rstrip()}\n```")
    parts.insert(1, f"[The notebook]({name}.ipynb): download it and open it in Jupyter.")
    return "\n\n".join(parts) + "\n"
