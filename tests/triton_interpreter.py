"""Triton 3.6's interpreter beside numpy 2.4, which no longer makes a Python int of an array with one element.

The interpreter holds scalars as such arrays and turns a loop's bounds into ints, so `range(0, n)` in a kernel fails.
"""

from __future__ import annotations

from typing import Any


def accept_scalars_as_bounds() -> None:
    """Makes the interpreter take a scalar for a loop's bound; for the process."""
    from triton.runtime import interpreter

    patch_language = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        patch_language(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch
