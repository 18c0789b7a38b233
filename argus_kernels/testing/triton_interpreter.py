"""Triton 3.6's interpreter as the tests use it: beside numpy 2.4, and without patching the language at every call.

The interpreter holds scalars as arrays of one element and turns a loop's bounds into ints, which numpy 2.4 no longer
does, so `range(0, n)` in a kernel fails. And it replaces every builtin of triton.language anew whenever one jitted
function calls another, which took half of the tests' time.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


def prepare_interpreter() -> None:
    """Makes the interpreter take a scalar for a loop's bound, and patch the language once a launch; for the process."""
    from triton.runtime import interpreter

    patch_tensor, patch_language = interpreter._patch_lang_tensor, interpreter._patch_lang
    languages = (interpreter.tl, interpreter.tl.core)
    scopes: dict[int, Any] = {}

    def patched_tensor(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def restore() -> None:
        for scope in reversed(list(scopes.values())):
            scope.restore()
        scopes.clear()

    def patched_language(function: Any) -> Any:
        used = [id(one) for one in languages if any(one is value for value in function.__globals__.values())]
        outermost = not scopes
        if not all(one in scopes for one in used):
            scope = patch_language(function)
            scopes.update({one: scope for one in used if one not in scopes})
        return SimpleNamespace(restore=restore if outermost else lambda: None)

    interpreter._patch_lang_tensor = patched_tensor
    interpreter._patch_lang = patched_language
