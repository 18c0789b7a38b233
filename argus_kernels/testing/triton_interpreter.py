"""Triton 3.6's interpreter as the tests use it: beside numpy 2.4, and without work whose result nobody reads.

The interpreter holds scalars as arrays of one element and turns a loop's bounds into ints, which numpy 2.4 no longer
does, so `range(0, n)` in a kernel fails. And most of its time went to what changes no result:

- It replaced every builtin of triton.language anew whenever one jitted function called another.
- It computed each 32-bit sum, difference and product a second time in 64 bits for a check of overflow that it makes
  under `debug` alone, which it never sets.
- Each value made the types of its shape anew, and each array a table of numpy's types.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any


def prepare_interpreter() -> None:
    """Makes the interpreter take a scalar for a loop's bound, and do no more than its results need; for the process."""
    from triton.runtime import interpreter

    _patch_once_a_launch(interpreter)
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=builder.options.debug)
    _keep_numpy_types(interpreter)
    _keep_block_types(interpreter.tl.core)
    _keep_shapes(interpreter.tl.core)


def _patch_once_a_launch(interpreter: Any) -> None:
    patch_tensor, patch_language = interpreter._patch_lang_tensor, interpreter._patch_lang
    languages = (interpreter.tl, interpreter.tl.core)
    scopes: dict[int, Any] = {}
    seen: dict[Any, list[int]] = {}

    def patched_tensor(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def restore() -> None:
        for scope in reversed(list(scopes.values())):
            scope.restore()
        scopes.clear()

    def patched_language(function: Any) -> Any:
        if function not in seen:
            names = function.__globals__.values()
            seen[function] = [id(one) for one in languages if any(one is value for value in names)]
        outermost = not scopes
        if not all(one in scopes for one in seen[function]):
            scope = patch_language(function)
            scopes.update({one: scope for one in seen[function] if one not in scopes})
        return SimpleNamespace(restore=restore if outermost else lambda: None)

    interpreter._patch_lang_tensor = patched_tensor
    interpreter._patch_lang = patched_language


def _keep_numpy_types(interpreter: Any) -> None:
    numpy_type, known = interpreter._get_np_dtype, dict[str, Any]()

    def kept(dtype: Any) -> Any:
        name = dtype.scalar.name
        if name not in known:
            known[name] = numpy_type(dtype)
        return known[name]

    interpreter._get_np_dtype = kept


def _keep_block_types(core: Any) -> None:
    """What `block_type` derives of an element's name and a shape; shapes that it refuses are not kept."""
    initialise, known = core.block_type.__init__, dict[Any, Any]()

    def initialise_block(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple(size.value if isinstance(size, core.constexpr) else size for size in shape)
        key = element_ty.name, sizes, type(shape), *map(type, sizes)
        if key not in known:
            initialise(self, element_ty, shape)
            known[key] = self.shape.type, self.numel, self.name
            return
        self.element_ty = element_ty
        type_of_shape, self.numel, self.name = known[key]
        self.shape = core.tuple(sizes, type_of_shape)

    core.block_type.__init__ = initialise_block


def _keep_shapes(core: Any) -> None:
    """A tensor's shape and number of elements as constants, of which each shape has one set."""
    initialise, known = core.tensor.__init__, dict[Any, Any]()

    def initialise_tensor(self: Any, handle: Any, type: Any) -> None:
        sizes = tuple(type.shape.values) if type.is_block() else ()
        if sizes not in known:
            initialise(self, handle, type)
            known[sizes] = self.shape.values, self.shape.type, self.numel
            return
        values, type_of_shape, self.numel = known[sizes]
        self.shape = core.tuple(values, type_of_shape)
        self.handle, self.type, self.dtype = handle, type, type.scalar

    core.tensor.__init__ = initialise_tensor
