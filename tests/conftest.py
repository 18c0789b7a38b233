"""What every test shares: one thread, a fixed seed, and where real data lies."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.drawn_examples import FULL, QUICK

if not torch.cuda.is_available():
    # Triton reads it when it is imported, which no test has done yet: its kernels then run in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")

if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None:
    from argus_kernels.testing.triton_interpreter import prepare_interpreter

    prepare_interpreter()

REPOSITORY = Path(__file__).resolve().parents[1]

for profile, count in (("full", FULL), ("quick", QUICK)):
    settings.register_profile(
        profile, deadline=None, max_examples=count, suppress_health_check=[HealthCheck.too_slow], derandomize=True
    )
settings.load_profile("full")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests run side by side in processes of one thread each; what a session's fixtures compute is computed so too."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread_and_seed(_one_thread: None) -> None:
    """One thread whatever a test before this one set, and no test depends on another's draws."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of public interaction data: ARGUS_TEST_DATA, else `shared/data` beside the repository."""
    folder = Path(os.environ.get("ARGUS_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not there; set ARGUS_TEST_DATA to a folder that holds ml-100k")
    return folder
