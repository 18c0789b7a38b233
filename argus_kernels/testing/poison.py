"""Fills fresh memory with NaN, so that a read of uninitialised memory shows in the results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import deterministic

# Its settings are properties that torch installs on the module at run time.
_settings: Any = deterministic


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Inside the block every torch.empty (native libraries' included) comes filled with NaN, integers with their
    largest value. Algorithms that have no deterministic form only warn.
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = _settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    _settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        _settings.fill_uninitialized_memory = fill
