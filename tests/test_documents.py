"""What the documents promise holds: their links lead somewhere, and the README's example runs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from argus_kernels.ops import OPS

REPOSITORY = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)(?:#[^)]*)?\)")


def documents() -> list[Path]:
    skipped = {".venv", "build", "dist", "node_modules"}
    return [p for p in sorted(REPOSITORY.rglob("*.md")) if not skipped & set(p.relative_to(REPOSITORY).parts)]


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_relative_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(path.read_text()):
        assert (path.parent / target).exists(), f"{path.relative_to(REPOSITORY)} links to {target}"


def test_the_readmes_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    found = re.search(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    assert found is not None
    names: dict[str, object] = {}
    exec(compile(found[1], "README.md", "exec"), names)
    assert "backend='reference'" in capsys.readouterr().out
    assert names["time_bias"].grad is not None  # type: ignore[attr-defined]


def test_the_readme_names_every_op_and_its_state() -> None:
    text = (REPOSITORY / "README.md").read_text().split("## What stands, and what is not there yet")[1]
    for op in OPS:
        row = re.search(rf"^\| {re.escape(op.name)} \|(.*)\|$", text, re.MULTILINE)
        assert row is not None, f"{op.name} is missing in the status table"
        states = dict(zip(("reference", "cpp", "triton", "cuda"), row[1].split("|"), strict=True))
        for backend, state in states.items():
            exists = any(one.name == backend for one in op.backends)
            assert exists == (state.strip() != "–"), f"{op.name}: the table says {state.strip()!r} of {backend}"


def test_make_help_lists_its_targets() -> None:
    done = subprocess.run(["make", "-s", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for target in ("setup", "demo", "test", "lint", "bench", "doctor"):
        assert f"make {target}" in done.stdout, target
