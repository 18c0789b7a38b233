"""Every public name has a page with its contract and an example, and every example of the pages runs."""

from __future__ import annotations

import ast
import inspect
import re
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
MODULES = ("argus_kernels.nn", "argus_kernels.optim", "argus_kernels.host", "argus_kernels.testing")
OWN_PAGES = [DOCS / "replaces.md", DOCS / "profiling.md"]
PAGES = sorted([*(DOCS / "api").glob("*.md"), *(DOCS / "howto").glob("*.md"), *OWN_PAGES])


def exported_at_the_top() -> set[str]:
    """What argus_kernels/__init__.py exports: `import a as a`, at its top level."""
    tree = ast.parse((REPOSITORY / "argus_kernels" / "__init__.py").read_text())
    aliases = [alias for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    return {f"argus_kernels.{alias.name}" for alias in aliases if alias.asname == alias.name}


def public(module: Any) -> set[str]:
    """The public functions and classes of a module: what __all__ names, else what it defines."""
    defined = [name for name, one in vars(module).items() if getattr(one, "__module__", "") == module.__name__]
    named = getattr(module, "__all__", [name for name in defined if not name.startswith("_")])
    return {f"{module.__name__}.{name}" for name in named if callable(getattr(module, name))}


def all_public() -> list[str]:
    return sorted(exported_at_the_top().union(*(public(import_module(name)) for name in MODULES)))


@lru_cache
def api_pages() -> dict[Path, str]:
    return {path: path.read_text() for path in (DOCS / "api").glob("*.md")}


def examples(text: str) -> str:
    return "\n".join(PYTHON.findall(text))


def test_the_public_names_are_found() -> None:
    found = all_public()
    assert {"argus_kernels.causal_attention", "argus_kernels.explain", "argus_kernels.nn.Negatives"} <= set(found)
    assert {"argus_kernels.optim.clip_grad_norm_", "argus_kernels.host.Plan"} <= set(found)
    assert not any(name.rsplit(".", 1)[1] in ("nn", "registered", "Problems") for name in found)


@pytest.mark.parametrize("name", all_public())
def test_a_public_name_has_a_page_with_an_example(name: str) -> None:
    pages = [text for text in api_pages().values() if re.search(rf"^::: {re.escape(name)}$", text, re.MULTILINE)]
    assert len(pages) == 1, f"{name} is documented on {len(pages)} pages of docs/api, expected one"
    short = name.rsplit(".", 1)[1]
    assert re.search(rf"\b{short}\b", examples(pages[0])), f"the page of {name} has no example that uses it"
    assert re.search(rf"`([\w.]+\.)?{short}`", api_pages()[DOCS / "api" / "README.md"]), f"{name} is not in the list"


def test_pages_document_what_there_is() -> None:
    documented = [name for text in api_pages().values() for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)]
    assert len(documented) == len(set(documented)) >= len(all_public())
    for name in documented:
        assert getattr(resolve_name(name), "__doc__", None), f"{name} has no docstring"


@pytest.mark.parametrize("name", all_public())
def test_what_is_returned_reads_as_a_sentence(name: str) -> None:
    """The site takes what stands before a colon in the first line of Returns for a type."""
    returns = re.search(r"^Returns:\n +(.*)$", inspect.getdoc(resolve_name(name)) or "", re.MULTILINE)
    assert returns is None or ": " not in returns[1], returns[1]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_the_examples_of_a_page_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": path.stem}
    for code in PYTHON.findall(path.read_text()):
        exec(compile(code, str(path.relative_to(REPOSITORY)), "exec"), names)
