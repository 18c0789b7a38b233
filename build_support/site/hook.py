"""What mkdocs calls while it builds the site (mkdocs.yml, `make docs`).

Adds the pages that do not lie in docs/, the programs of examples/, the notebooks and the benchmark report; rewrites
the links of all of them; and completes the navigation.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from build_support.site import notebooks, snippets, sources

REPORT = "benchmarks/report.html"
FIGURES = "benchmarks/figures.md"


def on_files(files: Any, *, config: Any) -> Any:
    """Adds what is generated and what lies outside docs/."""
    from mkdocs.structure.files import File

    for path, page in sources.outside_docs().items():
        where = sources.REPOSITORY / path
        if path.endswith(".py"):
            files.append(File.generated(config, page, content=sources.program_page(where, path)))
        else:
            files.append(File.generated(config, page, abs_src_path=str(where)))
    for name in notebooks.NOTEBOOKS:
        text, page = notebook(name)
        files.append(File.generated(config, f"notebooks/{name}.ipynb", content=text))
        files.append(File.generated(config, f"notebooks/{name}.md", content=page))
    report, tables = benchmark_report()
    files.append(File.generated(config, REPORT, content=report))
    files.append(File.generated(config, FIGURES, content=tables))
    config.nav = sources.navigation(config.nav, {file.src_uri for file in files.documentation_pages()})
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Rewrites the links of a page that is a file of the repository."""
    outside = sources.outside_docs()
    pages = {sources.DOCS + file.src_uri: file.src_uri for file in files if not file.generated_by}
    pages.update(outside)
    uri = page.file.src_uri
    origin = next((path for path, site in outside.items() if site == uri), sources.DOCS + uri)
    if origin not in pages:
        return markdown
    return snippets.filled(sources.rewritten(markdown, origin, pages, config.repo_url), sources.REPOSITORY)


@lru_cache
def notebook(name: str) -> tuple[str, str]:
    """A notebook and its page; executed where there is a kernel."""
    import nbformat

    program, arguments = notebooks.NOTEBOOKS[name]
    made = notebooks.generate(sources.REPOSITORY / program, arguments)
    if notebooks.can_execute():
        notebooks.execute(made, sources.REPOSITORY)
    return nbformat.writes(made), notebooks.page(made, name)


@lru_cache
def benchmark_report() -> tuple[str, str]:
    """The report of the committed results, as `python -m benchmarks report` makes it, and the page that leads to it."""
    from benchmarks.report import page

    machines = page.load(sources.REPOSITORY / "benchmarks" / "results")
    tables = page.markdown_tables(machines)
    introduction = (
        "# Benchmark results\n\nThe results that are committed in `benchmarks/results/`. "
        f"[The full report]({Path(REPORT).name}) has rooflines, all passes and every peer; "
        "[the protocol](README.md) says how they are measured.\n\n"
    )
    return page.page(machines), introduction + tables
