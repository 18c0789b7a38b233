"""How many examples hypothesis draws, by profile: all of them, or with --hypothesis-profile=quick a quarter."""

from __future__ import annotations

from hypothesis import settings

FULL, QUICK = 25, 6


def examples(count: int) -> int:
    """What a test that draws `count` examples in the full profile draws in the one that is loaded."""
    return max(1, count * settings().max_examples // FULL)
