"""What the metadata of a call decides, kept for the next call like it: the checks, the record, the backends.

A room's checks of arguments and a backend's `why_not` look at types, shapes, strides, dtypes, devices and plain
numbers, never at a tensor's values. A call whose key was accepted before skips them all and takes the plan of then.
What the key does not hold is compared on its own: the op's backends and the settings of the process.
"""

from __future__ import annotations

import functools
import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from argus_kernels.core.records import Given
from argus_kernels.core.registry import Backend, generation

MAX_PLANS = 1024
"""An op keeps so many; then it forgets them all. A jagged batch has sizes of its own, shared by the layers."""

_TENSORS = (Tensor, torch.nn.Parameter)
_EXACT = (int, bool, str)
_strided = torch.strided
_is_functional = torch._is_functional_tensor
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor

_environment: Mapping[Any, Any] = getattr(os.environ, "_data", os.environ)
"""os.environ without its encoding and decoding, which take 0.7 µs for a name that is not there, this 0.02."""
_decisive = [
    os.environ.encodekey(name) if _environment is not os.environ else name
    for name in ("ARGUS_NATIVE_DISABLE", "TRITON_INTERPRET")
]


def key_of(values: Iterable[Any]) -> tuple[Any, ...] | None:
    """What decides about a call with these arguments, hashable; None where nothing is kept, as of a lazy view.

    Of a float it holds the sign alone, which is all that a check asks of a finite number: a learning rate that changes
    every step finds its plan. Integers, words and flags stand in it as they are, with their types: 1 is not True.
    """
    key: list[Any] = []
    try:
        for value in values:
            kind = type(value)
            if kind in _TENSORS:
                if value.layout is not torch.strided or value.is_neg() or _is_functional(value):
                    return None
                recorded = value.requires_grad
                if recorded and _is_wrapped(value):
                    return None
                key += (value.shape, value.stride(), value.dtype, value.device, recorded)
            elif value is None:
                key.append(None)
            elif kind is float:
                if not -math.inf < value < math.inf:
                    return None
                key += (float, _sign(value))
            elif kind in _EXACT:
                key += (kind, value)
            elif kind is list or kind is tuple:
                inside = key_of(value)
                if inside is None:
                    return None
                key += (kind, inside)
            else:
                return None
    except RuntimeError:  # a nested tensor has no shape
        return None
    return tuple(key)


def _picker(places: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """The values at some places of a sequence, as a tuple."""
    if len(places) > 1:
        return operator.itemgetter(*places)
    return lambda values: tuple(values[place] for place in places)


class Likeness:
    """Recognises the calls of one key, in 2 µs where `key_of` and a look-up take 4.7 to 8.

    torch's guards, made for torch.compile, compare the tensors in one call: type, dispatch keys (which hold device,
    layout, lazy views, transforms and autocast), dtype, device, sizes, strides and `requires_grad`. A call that they
    refuse although its key is the same, as one that passes a tensor twice, is looked up by the key.
    """

    def __init__(self, values: Sequence[Any]) -> None:
        """values: those of a call that has a key."""
        self._kinds = tuple(map(type, values))
        places = range(len(values))
        self._tensors = _picker([place for place in places if self._kinds[place] in _TENSORS])
        self._exact = _picker([place for place in places if self._kinds[place] in _EXACT])
        self._floats = [(place, _sign(values[place])) for place in places if self._kinds[place] is float]
        lists = [place for place in places if self._kinds[place] in (list, tuple)]
        self._tensor_lists = [(place, len(values[place])) for place in lists if _are_tensors(values[place])]
        self._other_lists = [(place, key_of((values[place],))) for place in lists if not _are_tensors(values[place])]
        self._values = self._exact(values)
        self._guards = _guards(self._all_tensors(values))

    def _all_tensors(self, values: Sequence[Any]) -> Sequence[Any]:
        found = list(self._tensors(values))
        for place, _ in self._tensor_lists:
            found += values[place]
        return found

    def __call__(self, values: Sequence[Any]) -> bool:
        """Whether the key of these values is the same; False also where that is not clear."""
        # Types first: a tensor compared with a number gives a tensor.
        if tuple(map(type, values)) != self._kinds or self._exact(values) != self._values:
            return False
        for place, sign in self._floats:
            value = values[place]
            if not -math.inf < value < math.inf or _sign(value) != sign:
                return False
        if not self._tensor_lists and not self._other_lists:
            return _pass(self._guards, self._tensors(values))
        for place, count in self._tensor_lists:
            if len(values[place]) != count or not _are_tensors(values[place]):
                return False
        for place, key in self._other_lists:
            if key_of((values[place],)) != key:
                return False
        return _pass(self._guards, self._all_tensors(values))


def _pass(guards: Any, tensors: Sequence[Tensor]) -> bool:
    """Whether these, as many as the guards were made for, are like those.

    Of a sparse or nested tensor the guards ask the strides or sizes that it does not have, which aborts the process.
    """
    for tensor in tensors:
        if tensor.layout is not _strided or tensor.is_nested:
            return False
    same: bool = guards.check(*tensors)
    return same


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _are_tensors(values: Sequence[Any]) -> bool:
    return bool(values) and all(type(value) in _TENSORS for value in values)


def _guards(tensors: Sequence[Tensor]) -> Any:
    return torch._C._dynamo.guards.TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)


@functools.cache
def compares_tensors() -> bool:
    """Whether this torch has the guards that a `Likeness` stands on, which are no public part of it."""
    one, other = torch.zeros(2), torch.zeros(3)
    try:
        guards = _guards([one])
        return bool(guards.check(one)) and not guards.check(other)
    except (AttributeError, TypeError, SystemError):
        return False


def settings() -> tuple[Any, ...]:
    """What of the process decides which backends there are."""
    native_disable, triton_interpret = _decisive
    return _environment.get(native_disable), _environment.get(triton_interpret), generation()


Slots: TypeAlias = list[tuple[int, int, int | None]]
"""(which differentiable argument, first in the flat list of tensors, how many of a list or None for a tensor)."""


class Plan:
    """How calls of one key run.

    op: the `Op`. wanted: the backend that was asked for, which serves the backward pass too. wants_gradients: whether
    autograd records the call.
    """

    def __init__(self, op: Any, given: Given, wanted: str, wants_gradients: bool) -> None:
        self.op = op
        self.wanted = wanted
        self.wants_gradients = wants_gradients
        self.backends = op.backends
        self.settings = settings()
        self.backend = op.serving(given, wanted)
        self.checks = op.check is not None and not self.backend.checks_values(given)
        """Whether the op's check runs before the backend."""
        self.assembles: bool = op.assembles(given)
        self._backward: Backend | None = None
        self._place_tensors(given)
        self._wants: dict[tuple[bool, ...], tuple[dict[str, bool], Slots]] = {}
        self._arranged: Callable[[Sequence[Any]], tuple[Any, ...]] | None = None
        """Picks the fields of the record out of what a call gives and the template."""
        self._as_given = False
        """Whether the room changes nothing."""
        self._copied: list[int] = []
        self._template: tuple[Any, ...] = ()
        self.likeness: Likeness | None = None
        """Made when the plan is found again."""
        self._gradients: tuple[int, Any] | None = None

    def _place_tensors(self, given: Given) -> None:
        """Notes where the tensors of the record are in the flat list of them that autograd sees."""
        self.places: list[tuple[int, int, int | None]] = []
        """(field, first in the flat list, how many of a list or None for a tensor)."""
        count = 0
        for field, value in enumerate(given):
            if isinstance(value, Tensor):
                self.places.append((field, count, None))
                count += 1
            elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
                self.places.append((field, count, len(value)))
                count += len(value)
        self.count = count
        fields = [field for field, _, _ in self.places]
        others = [field for field in range(len(given)) if field not in fields]
        self.values: Callable[[Given], tuple[Any, ...]] = _picker(others)
        """What of the record is no tensor, in its order."""
        self._pick: Callable[[Given], tuple[Tensor, ...]] | None = None
        if all(size is None for _, _, size in self.places):
            self._pick = _picker(fields)
        starts = {field: (len(others) + first, size) for field, first, size in self.places}
        starts |= {field: (index, None) for index, field in enumerate(others)}
        self._join = _picker([starts[field][0] for field in range(len(given))])
        """Of a list of tensors it takes the first."""
        self._lists = [
            (field, slice(start, start + size)) for field, (start, size) in sorted(starts.items()) if size is not None
        ]

    def learn(self, raw: Given, given: Given, told: int) -> bool:
        """Notes how a room made its record of the user's arguments; False where it made a tensor, so cannot be kept.

        told: how many of the first fields such a call gives; the others of `raw` have their defaults.
        """
        places = []
        for field, (before, after) in enumerate(zip(raw, given, strict=True)):
            if isinstance(after, list):
                if len(before) != len(after) or any(a is not b and a != b for a, b in zip(before, after, strict=True)):
                    return False
                self._copied.append(field)
            elif after is not before and (isinstance(after, Tensor) or isinstance(before, float)):
                return False
            kept = field < told and (after is before or isinstance(after, list))
            places.append(field if kept else told + field)
        self._template = tuple(None if field == place else given[field] for field, place in enumerate(places))
        self._arranged = _picker(places)
        self._as_given = not self._copied and places == list(range(len(given)))
        return True

    def stands(self) -> bool:
        """Whether the backends and settings are those of the plan."""
        return self.backends is self.op.backends and self.settings == settings()

    def replay(self, raw: tuple[Any, ...]) -> Given:
        """The record that the room would make of the user's arguments."""
        assert self._arranged is not None
        if self._as_given and type(raw) is self.op.record:
            return raw
        fields: Sequence[Any] = self._arranged(raw + self._template)
        if self._copied:
            fields = list(fields)
            for field in self._copied:
                fields[field] = list(fields[field])
        return tuple.__new__(self.op.record, fields)

    def tensors(self, given: Given) -> Sequence[Tensor]:
        """The flat list of the record's tensors."""
        if self._pick is not None:
            return self._pick(given)
        flat: list[Tensor] = []
        for field, _, count in self.places:
            if count is None:
                flat.append(given[field])
            else:
                flat += given[field]
        return flat

    def restore(self, values: tuple[Any, ...], tensors: tuple[Tensor, ...]) -> Given:
        """The record out of what `values` took of it and the flat list of its tensors, which more may follow."""
        together = values + tensors
        fields: Sequence[Any] = self._join(together)
        if self._lists:
            fields = list(fields)
            for field, part in self._lists:
                fields[field] = list(together[part])
        return tuple.__new__(self.op.record, fields)

    def compute(self, given: Given) -> Any:
        """The outputs. Values are checked once: by the kernels where they do, and refused in the op's words."""
        if self.checks:
            self.op.check(given)
            return self.backend.forward(given)
        try:
            return self.backend.forward(given)
        except ValueError:
            if self.op.check is not None:
                self.op.check(given)
            raise

    def wants(self, needs: tuple[bool, ...]) -> tuple[dict[str, bool], Slots]:
        """Which differentiable arguments get gradients, and where in the flat list those gradients go.

        needs: for each tensor of the flat list, whether autograd wants its gradient.
        """
        found = self._wants.get(needs)
        if found is None:
            places = {field: (first, count) for field, first, count in self.places}
            wanted, slots = dict.fromkeys(self.op.differentiable, False), []
            for index, name in enumerate(self.op.differentiable):
                first, count = places.get(self.op.arguments.index(name), (0, 0))
                if any(needs[first : first + (1 if count is None else count)]):
                    wanted[name] = True
                    slots.append((index, first, count))
            found = self._wants[needs] = wanted, slots
        return found

    def knows(self, gradients: Sequence[Tensor]) -> bool:
        """Whether these are like the plain gradients of an earlier backward pass."""
        known = self._gradients
        return (
            known is not None and known[0] == len(gradients) and _are_tensors(gradients) and _pass(known[1], gradients)
        )

    def learn_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Notes the gradients of a backward pass, which are plain."""
        if gradients and compares_tensors():
            self._gradients = len(gradients), _guards(gradients)

    def backward(self, given: Given) -> Backend:
        """The backend of the backward pass; the settings are those of the forward call."""
        if self._backward is None or self.backends is not self.op.backends:
            self._backward = self.op.serving(given, self.wanted, "backward")
        return self._backward
