"""The site's own parts: links rewritten, snippets filled in, notebooks made."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from build_support.site import notebooks, snippets, sources

PAGES = {
    "README.md": "index.md",
    "docs/cli.md": "cli.md",
    "docs/decisions/README.md": "decisions/README.md",
    "argus_kernels/ops/x/README.md": "ops/x/README.md",
    "examples/two_ranks.py": "examples/two_ranks.md",
}


@pytest.mark.parametrize(
    ("origin", "link", "expected"),
    [
        ("README.md", "[a](docs/cli.md)", "[a](cli.md)"),
        ("README.md", "[`a [b]`](docs/cli.md#ids)", "[`a [b]`](cli.md#ids)"),
        ("docs/cli.md", "[a](../README.md), [b](decisions/README.md)", "[a](index.md), [b](decisions/README.md)"),
        ("docs/cli.md", "[a](../argus_kernels/ops/x/README.md#cuda)", "[a](ops/x/README.md#cuda)"),
        ("argus_kernels/ops/x/README.md", "[a](../../../docs/cli.md)", "[a](../../cli.md)"),
        ("argus_kernels/ops/x/README.md", "[a](../../../examples/two_ranks.py)", "[a](../../examples/two_ranks.md)"),
        ("README.md", "[a](#here) [b](https://c.org/d.md)", "[a](#here) [b](https://c.org/d.md)"),
        ("README.md", "see [the `plan`](csrc/plan.cpp).", "see the `plan`."),
    ],
)
def test_links_lead_to_pages_of_the_site(origin: str, link: str, expected: str) -> None:
    assert sources.rewritten(link, origin, PAGES) == expected


def test_links_to_other_files_lead_to_the_repository_where_it_is_known() -> None:
    link = sources.rewritten("[plan](csrc/plan.cpp)", "README.md", PAGES, "https://host.org/a/b/")
    assert link == "[plan](https://host.org/a/b/blob/main/csrc/plan.cpp)"


def test_code_stays_as_it_is() -> None:
    code = "```python\nx = f[a](docs/cli.md)\n- 1\n```"
    assert sources.rewritten(code, "README.md", PAGES) == code


def test_a_list_after_a_line_of_text_is_a_list() -> None:
    text = "It is:\n- one\n  more\n- two\n\nEnd."
    assert sources.rewritten(text, "README.md", PAGES) == "It is:\n\n- one\n  more\n- two\n\nEnd."


def test_every_page_outside_docs_exists_and_has_an_address_of_its_own() -> None:
    found = sources.outside_docs()
    assert "ops/pairwise_loss/README.md" in found.values() and "examples/sasrec/plain.md" in found.values()
    assert all((sources.REPOSITORY / path).is_file() for path in found)
    inside = {path.relative_to(sources.REPOSITORY / "docs").as_posix() for path in sources.REPOSITORY.glob("docs/**/*")}
    assert len(set(found.values())) == len(found) and not inside & set(found.values())


def test_the_navigation_has_every_page_once() -> None:
    given = [{"Start": ["index.md", {"Name": "b.md"}]}, {"Parts": ["d/2.md", "d/*.md"]}]
    found = sources.navigation(given, {"index.md", "b.md", "d/1.md", "d/2.md", "d/3.md", "new.md"})
    assert found == [
        {"Start": ["index.md", {"Name": "b.md"}]}, {"Parts": ["d/2.md", "d/1.md", "d/3.md"]}, {"More": ["new.md"]}
    ]  # fmt: skip
    assert sources.navigation(["a.md", "b*.md"], {"a.md"}) == ["a.md"]


def test_snippets_show_code_of_programs(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('"""A."""\n\ndef f():\n    return 1\n\n\nx = 1\n')
    (tmp_path / "b.py").write_text('"""B."""\n\ndef f():\n    return 2\n\n\nx = 1\n')
    text = "Before.\n\n<!-- code: a.py f -->\n\n<!-- diff: a.py b.py -->\n"
    shown = snippets.filled(text, tmp_path)
    assert "```python\ndef f():\n    return 1\n```" in shown
    assert "-    return 1\n+    return 2" in shown and "A." not in shown


@pytest.mark.parametrize("line", ["<!-- code: a.py g -->", "<!-- code: c.py f -->", "<!-- diff: a.py c.py -->"])
def test_a_snippet_of_nothing_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.py").write_text('"""A."""\n\ndef f():\n    return 1\n')
    with pytest.raises(ValueError, match=r"a\.py defines no g|c\.py does not exist"):
        snippets.filled(line, tmp_path)


def test_the_snippets_of_the_pages_exist() -> None:
    pages = list((sources.REPOSITORY / "docs").rglob("*.md"))
    shown = [page for page in pages if snippets.filled(page.read_text(), sources.REPOSITORY) != page.read_text()]
    assert len(shown) >= 3


@pytest.mark.skipif(find_spec("jupytext") is None, reason="jupytext is not installed (pip install '.[docs]')")
@pytest.mark.parametrize("name", notebooks.NOTEBOOKS)
def test_a_notebook_has_the_parts_of_its_program(name: str) -> None:
    program, arguments = notebooks.NOTEBOOKS[name]
    made = notebooks.generate(sources.REPOSITORY / program, arguments)
    kinds = [cell.cell_type for cell in made.cells]
    assert kinds[0] == "markdown" and kinds[-1] == "code" and kinds.count("code") >= 5
    assert "import argparse" in made.cells[1].source and "import torch" in made.cells[1].source
    assert made.cells[0].source.startswith(f"# {Path(program).name}\n\n")
    assert made.cells[-1].source.endswith("main()") and arguments[0] in made.cells[-1].source
    assert "def main" in "".join(cell.source for cell in made.cells)


@pytest.mark.skipif(find_spec("jupytext") is None, reason="jupytext is not installed (pip install '.[docs]')")
def test_a_program_without_a_main_is_no_notebook(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('"""A."""\n\nx = 1\n')
    with pytest.raises(ValueError, match="expected a docstring first"):
        notebooks.generate(tmp_path / "a.py", ())


@pytest.mark.slow
@pytest.mark.skipif(not notebooks.can_execute(), reason="there is no kernel to run notebooks (pip install '.[docs]')")
@pytest.mark.parametrize("name", notebooks.NOTEBOOKS)
def test_a_notebook_runs(name: str) -> None:
    program, arguments = notebooks.NOTEBOOKS[name]
    made = notebooks.generate(sources.REPOSITORY / program, arguments)
    notebooks.execute(made, sources.REPOSITORY)
    assert "steps" in made.cells[-1].outputs[0].text
    shown = notebooks.page(made, name)
    assert f"({name}.ipynb)" in shown and "```text\nloss " in shown
