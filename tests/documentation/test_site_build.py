"""The whole site is built without a warning, and needs nothing from elsewhere when it is read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?([^"'\s>]+)|<link\b[^>]*\bhref=["']?([^"'\s>]+)"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed (pip install '.[docs]')")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr[-4000:]
    return folder


@pytest.mark.slow
def test_the_site_has_its_pages(site: Path) -> None:
    for page in ("index", "quickstart", "api/causal_attention", "ops/pairwise_loss/index", "benchmarks/report"):
        assert (site / f"{page}.html").is_file(), page
    contract = (site / "api" / "causal_attention.html").read_text()
    assert "offsets" in contract and "ValueError" in contract
    assert (site / "notebooks" / "ops_in_plain_torch.ipynb").is_file()


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        for found in LOADED.findall(page.read_text()):
            address = "".join(found)
            assert not re.match(r"(https?:)?//", address), f"{page.relative_to(site)} loads {address}"
