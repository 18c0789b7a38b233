"""Which file of the repository is which page of the site, and links between them rewritten.

Documents link to each other by relative paths in the repository, as a code host shows them. In the site `docs/` is the
root, and the READMEs of the folders have addresses of their own.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = "docs/"
OTHER_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks/README.md",
    "csrc/attention/README.md": "csrc/attention/README.md",
    "examples/README.md": "examples/README.md",
}
"""Pages outside docs/: path in the repository → path in the site."""
OTHER_PATTERNS = {
    "argus_kernels/ops/*/README.md": "argus_kernels/",
    "benchmarks/results/static/*.md": "",
    "benchmarks/results/**/*.svg": "",
    "examples/**/*.py": "",
}
"""More of them: pattern → the beginning of the path that the site leaves out."""
LINK = re.compile(r"(\[(?:[^\[\]]|\[[^\]]*\])*\]\()([^()\s]+)(\))")
FENCE = re.compile(r"^\s*(```+|~~~+)")
ITEM = re.compile(r"^([-*]|\d+\.) ")


def outside_docs(root: Path = REPOSITORY) -> dict[str, str]:
    """Every page and figure of the site that does not lie in docs/: path in the repository → path in the site."""
    found = dict(OTHER_PAGES)
    for pattern, left_out in OTHER_PATTERNS.items():
        for path in sorted(root.glob(pattern)):
            name = path.relative_to(root).as_posix()
            found[name] = page_of_program(name.removeprefix(left_out))
    return found


def page_of_program(name: str) -> str:
    """The page that shows a program; other files keep their names."""
    return name.removesuffix(".py") + ".md" if name.endswith(".py") else name


def lines_outside_code(markdown: str) -> Iterator[tuple[str, bool]]:
    """Every line, and whether it is text rather than part of a fenced block."""
    fence = ""
    for line in markdown.split("\n"):
        mark = FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence):
            fence = ""
        yield line, not fence and not mark


def rewritten(markdown: str, origin: str, pages: dict[str, str], repository_url: str | None = None) -> str:
    """A document's text as the site shows it.

    A link to a page or figure of `pages` (path in the repository → path in the site) leads there; a link to any other
    file leads to `repository_url`, and without one only its text is left. A list gets the blank line before it that a
    code host does not need.

    Args:
        markdown: the text.
        origin: the document's path in the repository, one of `pages`.
        pages: all pages and figures.
        repository_url: where the repository's files are shown.
    """
    here = posixpath.dirname(pages[origin])

    def target(link: re.Match[str]) -> str:
        opening, address, closing = link.groups()
        path, mark, anchor = address.partition("#")
        if not path or re.match(r"[a-z]+:", address):
            return link[0]
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
        if wanted in pages:
            return f"{opening}{posixpath.relpath(pages[wanted], here or '.')}{mark}{anchor}{closing}"
        if repository_url:
            return f"{opening}{repository_url.rstrip('/')}/blob/main/{wanted}{mark}{anchor}{closing}"
        return opening.removeprefix("[").removesuffix("](")

    out: list[str] = []
    for line, is_text in lines_outside_code(markdown):
        if is_text and ITEM.match(line) and out and out[-1].strip() and not _continues_list(out):
            out.append("")
        out.append(LINK.sub(target, line) if is_text else line)
    return "\n".join(out)


def _continues_list(lines: list[str]) -> bool:
    """Whether the paragraph that ends here belongs to an item of a list."""
    for line in reversed(lines):
        if not line.strip():
            return False
        if ITEM.match(line):
            return True
    return False


def program_page(path: Path, name: str) -> str:
    """The page of a program: its text, under its path."""
    return f"# {name}\n\n```python\n{path.read_text('utf-8').rstrip()}\n```\n"


def navigation(given: list[Any], pages: set[str]) -> list[Any]:
    """The navigation with every page in it.

    A pattern such as `decisions/*.md` stands for the pages that it matches and no other entry names, sorted. Pages that
    are left get a last section.
    """
    left = pages - {entry for entry in _entries(given) if "*" not in entry}

    def filled(entry: Any) -> list[Any]:
        if isinstance(entry, dict):
            title, inner = next(iter(entry.items()))
            return [{title: inner if isinstance(inner, str) else [one for part in inner for one in filled(part)]}]
        if "*" not in entry:
            return [entry]
        matched = sorted(page for page in left if fnmatchcase(page, entry))
        left.difference_update(matched)
        return matched

    whole = [one for entry in given for one in filled(entry)]
    return [*whole, {"More": sorted(left)}] if left else whole


def _entries(navigation: Any) -> Iterator[str]:
    """All paths and patterns of a navigation."""
    if isinstance(navigation, str):
        yield navigation
    else:
        for part in navigation.values() if isinstance(navigation, dict) else navigation:
            yield from _entries(part)
