"""Where a page was made: machine, versions and commit, in a sentence."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone

import torch

from argus_kernels import __version__
from argus_kernels.doctor import cpu_model, source_commit


def provenance() -> str:
    """As in "Made on 2026-03-01 at 10:00 UTC: AMD EPYC, 2 cores; argus-kernels 0.1.0, torch 2.13.0, Python 3.11.7."."""
    device = f"{torch.cuda.get_device_name(0)}, " if torch.cuda.is_available() else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    revision = source_commit()
    ours = f"argus-kernels {__version__}" + (f" at commit {revision}" if revision else "")
    versions = f"{ours}, torch {torch.__version__}, Python {platform.python_version()}"
    return (
        f"Made on {datetime.now(timezone.utc):%Y-%m-%d at %H:%M UTC}: {device}{cpu_model()}, {cores} cores; {versions}."
    )
