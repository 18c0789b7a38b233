"""One torch op per op: schema, fake, autograd and autocast, written once for every room.

`Op` registers `argus::<name>` and, where the op is differentiable, `argus::<name>_backward`. Both are opaque to
torch.compile and torch.export, with shapes from the room's `fake`; which backend computes is decided at run time
behind the boundary. A plain eager call bypasses the boundary and uses the same backend, see `argus_kernels.core.eager`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from argus_kernels.core.eager import apply_recorded, is_plain, is_quiet, restore, save
from argus_kernels.core.gradients import any_needed, empty_gradients, filled, flatten
from argus_kernels.core.plans import MAX_PLANS, Likeness, Plan, compares_tensors, key_of
from argus_kernels.core.problems import FLOATING, Problems
from argus_kernels.core.records import Given, Record, schema_arguments, schema_types, tensors_among
from argus_kernels.core.registry import Backend, Probe, choose, default_backend, unknown_backend
from argus_kernels.core.sample import Growth, Sample

NAMESPACE = "argus"

_functorch = torch._C._functorch
_GRADIENT_TRANSFORMS = (_functorch.TransformType.Grad, _functorch.TransformType.Jvp)


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Casts floating-point tensors to the autocast dtype of their device where autocast is on; else a no-op.

    Rooms call it on the operands of matrix products, before they compare dtypes. float64 is not cast, as in torch.
    """
    first = next((tensor for tensor in tensors if isinstance(tensor, Tensor)), None)
    if first is None or not autocast_is_on(first.device.type):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)
    castable = (torch.float32, torch.float16, torch.bfloat16)
    return tuple(t.to(dtype) if isinstance(t, Tensor) and t.dtype in castable else t for t in tensors)


def constant(value: Any, dtype: torch.dtype) -> Any:
    """An argument that gets no gradient, in `dtype`: itself where it is so already, so that its call's plan is kept."""
    if value is None or (value.dtype == dtype and not value.requires_grad):
        return value
    return value.detach().to(dtype)


def plain_number(value: Any) -> Any:
    """A number that comes as a tensor of no dimension, such as a learning rate, read: on a GPU that waits for it.

    Itself where it is none, where torch.compile or a transform looks on, and where it is for the checks to refuse.
    """
    if value is None or not isinstance(value, Tensor) or torch.compiler.is_compiling():
        return value
    fits = value.layout is torch.strided and not value.is_nested and value.dim() == 0 and not value.requires_grad
    return value.item() if fits and value.dtype in FLOATING and is_plain([value]) else value


def autocast_is_on(device: str) -> bool:
    """Whether autocast is on for a type of device; False for one that has none, such as "meta"."""
    if device not in ("cpu", "cuda") and not torch.amp.is_autocast_available(device):
        return False
    return torch.is_autocast_enabled(device)


_registered: dict[str, Op] = {}


def registered() -> tuple[Op, ...]:
    """The ops that exist so far, in the order in which their rooms were imported."""
    return tuple(_registered.values())


class Op:
    """An op of the package: its schema, its backends in order of preference, its samples.

    arguments: the op's record, a NamedTuple; its annotations are the schema ("Tensor q, Tensor? visible, float scale"),
    and everything here takes the call's arguments as an instance of it.
    returns: the schema's results, such as "(Tensor, Tensor)".
    fake: shapes of the outputs from the record (of fake tensors), as the schema has them.
    as_registered: makes the outputs of the schema out of the record and what a backend's forward returned, where some
    calls have fewer outputs than the schema; the plain eager path does without.
    differentiable: arguments that get gradients. mutates: arguments written in place (such an op has no gradients).
    numbers: names and bounds, as `Problems.number` takes them, of the record's floats whose values may come as tensors:
    they are checked behind the boundary.
    check: validates values on the real tensors, behind the boundary, once for every backend.
    fake_backward: shapes of the gradients where they are not simply those of the arguments.
    samples: the cases of tests and benchmarks. tiles: cases of several tiles in every direction at the widths 64, 128
    and 256, the smallest first; its argument multiplies the number of events. drawn: a further case for any lengths of
    users, rows of padding and variant (a number that picks the optional arguments), so that tests draw jagged shapes.
    grows: a case over one size on a machine, "cpu", "cuda" or "tiny", for benchmarks of cost against size.
    assemble: turns what a backend's backward returned, flattened, into one gradient per differentiable argument.
    assembles: whether it does more for a record than undo the flattening.
    """

    def __init__(
        self,
        name: str,
        *,
        arguments: Record,
        returns: str,
        fake: Callable[[Given], Any],
        as_registered: Callable[[Given, Any], Any] = lambda given, outputs: outputs,
        backends: Sequence[Backend],
        differentiable: Sequence[str] = (),
        mutates: Sequence[str] = (),
        numbers: Mapping[str, tuple[str, Mapping[str, float]]] | None = None,
        check: Callable[[Given], None] | None = None,
        fake_backward: Callable[[list[Tensor], dict[str, bool], Given], list[Tensor]] | None = None,
        assemble: Callable[[Given, dict[str, bool], list[Tensor]], list[Any]] | None = None,
        assembles: Callable[[Given], bool] = lambda given: True,
        samples: Callable[[], list[Sample]] = list,
        tiles: Callable[[int], list[Sample]] = lambda scale: [],
        drawn: Callable[[Sequence[int], int, int], Sample] | None = None,
        grows: Callable[[str], Growth] | None = None,
    ) -> None:
        self.name = name
        self.record = arguments
        self.arguments = arguments._fields
        self.backends = tuple(backends)
        self.differentiable = tuple(differentiable)
        self.mutates = tuple(mutates)
        self._written = [self.arguments.index(name) for name in self.mutates]
        self.samples = samples
        self.tiles = tiles
        self.drawn = drawn
        self._leaves = [(name, self.arguments.index(name)) for name in self.differentiable]
        self.grows = grows
        kinds = list(schema_types(arguments).values())
        self._floats = [index for index, kind in enumerate(kinds) if kind.startswith("float")]
        self._numbers = dict(numbers or {})
        self._takes_tensor_lists = "Tensor[]" in kinds
        self._fake = fake
        self._as_registered = as_registered
        self.check = check
        self._plans: dict[Any, Plan] = {}
        self._latest: tuple[Plan, ...] = ()
        """The plans of the last calls that differed, for the layers of a batch."""
        self._fake_backward = fake_backward
        self._assemble = assemble
        self._assembles = assembles
        self._define_forward(schema_arguments(arguments, self.mutates), returns)
        if differentiable:
            self._define_backward(schema_arguments(arguments))
        _registered[name] = self

    def __call__(
        self,
        given: tuple[Any, ...],
        *,
        backend: str | None = None,
        prepare: Callable[..., Given] | None = None,
        also: tuple[Any, ...] = (),
    ) -> Any:
        """Computes the op on its record, or on the first fields of one whose other fields have their defaults.

        backend "eager" is the plain PyTorch definition with no op boundary: autograd and torch.compile see through it.
        It is what the fast backends are judged against.
        prepare: prepare(given, *also) makes the record that backends take of `given` as the user gave it, or raises.
        It looks at metadata alone, and is not asked again for a call like one that it has taken (`plans.key_of`).
        """
        wanted = default_backend() if backend is None else backend
        key = None
        if not torch.compiler.is_compiling() and type(wanted) is str and wanted != "eager":
            values = (wanted, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *also, *given)
            plan, key = self._plan_of(values)
            if plan is not None and is_quiet():
                return self._directly(plan, plan.replay(given))
        told = len(given)
        given = raw = self.record(*given)
        if prepare is not None:
            given = prepare(raw, *also)
        if isinstance(wanted, Probe):
            wanted.op, wanted.given = self, given
            return self._fake(given)
        if not isinstance(wanted, str) or not self._has(wanted):
            raise ValueError(unknown_backend(self.name, self.backends, wanted))
        if wanted == "eager":
            return self._eager(given)
        if not torch.compiler.is_compiling():
            tensors = tensors_among(given)
            wants_gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
            if (self.differentiable or not wants_gradients) and is_plain(tensors):
                return self._planned(raw, given, told, key, wanted, wants_gradients)
        if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
            refuse_transforms(self.name, given)
        if any(_is_free(given[index]) for index in self._floats):
            return self._with_free_numbers(given, wanted)
        return self.torch_op(*given, wanted)

    def _plan_of(self, values: Sequence[Any]) -> tuple[Plan | None, Any]:
        """The plan that was kept for these values, if any; else their key, None where no plan can be kept."""
        for plan in self._latest:
            if plan.likeness is not None and plan.likeness(values) and plan.stands():
                return plan, None
        key = key_of(values)
        found = None if key is None else self._plans.get(key)
        if found is None or not found.stands():
            return None, key
        if found.likeness is None and compares_tensors():
            found.likeness = Likeness(values)
        if found not in self._latest:
            self._latest = (found, *self._latest[:1])
        return found, key

    def _planned(self, raw: Given, given: Given, told: int, key: Any, wanted: str, wants_gradients: bool) -> Any:
        """A plain call that no plan was found for; the plan is kept for the next one where that can be."""
        plan = Plan(self, given, wanted, wants_gradients)
        outputs = self._directly(plan, given)
        if key is not None and plan.learn(raw, given, told):
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
                self._latest = ()
            self._plans[key] = plan
        return outputs

    def _with_free_numbers(self, given: Given, wanted: str) -> Any:
        """The op in a graph that serves every value of its numbers, which reach it as one tensor.

        A free number itself would not do: torch.compile turns what an op takes as a float into a constant again.
        """
        one = torch.ones((), dtype=torch.float64)
        floats = [index for index in self._floats if given[index] is not None]
        numbers = torch.stack(
            [
                given[index].to("cpu", torch.float64) if isinstance(given[index], Tensor) else one * given[index]
                for index in floats
            ]
        )
        values = [0.0 if index in floats else value for index, value in enumerate(given)]
        return self.torch_op(*values, wanted, numbers)

    def _directly(self, plan: Plan, given: Given) -> Any:
        if plan.wants_gradients:
            return apply_recorded(plan, given, *plan.tensors(given))
        if self.mutates:
            written = [one for place in self._written if (one := given[place]) is not None and not one.is_inference()]
            torch.autograd.graph.increment_version(written)
        return plan.compute(given)

    def _has(self, name: str) -> bool:
        return name in ("auto", "eager") or any(backend.name == name for backend in self.backends)

    def _eager(self, given: Given) -> Any:
        if any(tensor.device.type == "meta" for tensor in tensors_among(given)):
            return self.torch_op(*given, "reference")
        if self.check is not None and not torch.compiler.is_compiling():
            self.check(given)
        return self._attached(self.backend("reference").forward(given), given)

    def _attached(self, outputs: Any, given: Given) -> Any:
        """The outputs, as functions of the differentiable arguments where autograd has found none.

        Without users, rows or classes the definition multiplies nothing; gradients are zeros then, not missing.
        """
        leaves = tensors_among(getattr(given, name) for name in self.differentiable)
        wanted = [tensor for tensor in leaves if tensor.requires_grad]
        every = outputs if isinstance(outputs, tuple) else (outputs,)
        if not wanted or not torch.is_grad_enabled() or any(output.requires_grad for output in every):
            return outputs
        nothing = sum((tensor.flatten()[:0].sum() for tensor in wanted), wanted[0].new_zeros(()))
        attached = tuple(
            output + nothing.to(output.dtype) if output.is_floating_point() else output for output in every
        )
        return attached if isinstance(outputs, tuple) else attached[0]

    def backend(self, name: str) -> Backend:
        """The backend of that name."""
        for backend in self.backends:
            if backend.name == name:
                return backend
        raise KeyError(f"{self.name} has no backend {name!r}")

    def _registered(self, args: Sequence[Any]) -> tuple[Given, str]:
        """Record and backend out of what the registered op got: with its free numbers back in their places."""
        count = len(self.arguments)
        values = list(args[:count])
        if len(args) > count + 1 and args[count + 1] is not None:
            floats = [index for index in self._floats if values[index] is not None]
            for index, number in zip(floats, args[count + 1].tolist(), strict=True):
                values[index] = self._checked_number(self.arguments[index], number)
        return self.record(*values), args[count]

    def _checked_number(self, field: str, number: float) -> float:
        problems = Problems(self.name)
        name, bounds = self._numbers.get(field, (field, {}))
        problems.number(name, number, least=bounds.get("least"), above=bounds.get("above"), below=bounds.get("below"))
        problems.raise_if_any()
        return number

    def compute(self, given: Given, wanted: str) -> Any:
        """The outputs, by the backend `wanted`; autograd sees nothing of it."""
        backend = self.serving(given, wanted)
        with _without_autocast(given):
            if self.check is not None:
                self.check(given)
            return self._as_registered(given, backend.forward(given))

    def serving(self, given: Given, wanted: str, part: str = "forward") -> Backend:
        """The backend that serves a pass ("forward", "backward"), or an error with every reason why there is none."""
        backend = choose(self.name, self.backends, wanted, given, part)
        if part == "backward" and backend.backward is None:
            raise ValueError(f"{self.name}[{backend.name}]: this backend has no backward pass")
        return backend

    def _compute_backward(
        self, gradients: list[Tensor], outputs: list[Tensor], needs: Sequence[bool], given: Given, wanted: str
    ) -> list[Tensor]:
        backend = self.serving(given, wanted, "backward")
        assert backend.backward is not None
        with _without_autocast(given):
            wanted_gradients = dict(zip(self.differentiable, needs, strict=True))
            return flatten(backend.backward(gradients, outputs, wanted_gradients, given), gradients[0])

    def _define_forward(self, arguments: str, returns: str) -> None:
        def forward(*args: Any) -> Any:
            return self.compute(*self._registered(args))

        schema = f"({arguments}, str backend, Tensor? numbers=None) -> {returns}"
        definition = torch.library.custom_op(
            f"{NAMESPACE}::{self.name}", forward, mutates_args=self.mutates, schema=schema
        )
        definition.register_fake(lambda *args: self._fake(self.record(*args[: len(self.arguments)])))
        if self.differentiable:
            definition.register_autograd(self._autograd_backward, setup_context=save)
        if self.mutates or self._takes_tensor_lists:
            definition.register_vmap(self._refuse_vmap)
        self.definition = definition
        self.torch_op = getattr(getattr(torch.ops, NAMESPACE), self.name).default

    def _define_backward(self, arguments: str) -> None:
        def backward(gradients: list[Tensor], outputs: list[Tensor], needs: list[bool], *args: Any) -> list[Tensor]:
            return self._compute_backward(gradients, outputs, needs, *self._registered(args))

        def fake(gradients: list[Tensor], outputs: list[Tensor], needs: list[bool], *args: Any) -> list[Tensor]:
            given = self.record(*args[: len(self.arguments)])
            if self._fake_backward is not None:
                return self._fake_backward(gradients, dict(zip(self.differentiable, needs, strict=True)), given)
            shapes = [
                empty_gradients(getattr(given, name), needed)
                for name, needed in zip(self.differentiable, needs, strict=True)
            ]
            return flatten(shapes, gradients[0])

        name = f"{NAMESPACE}::{self.name}_backward"
        schema = (
            f"(Tensor[] gradients, Tensor[] outputs, bool[] needs, {arguments}, str backend, Tensor? numbers=None)"
            " -> Tensor[]"
        )
        definition = torch.library.custom_op(name, backward, mutates_args=(), schema=schema)
        definition.register_fake(fake)
        definition.register_autograd(self._refuse_second_derivatives)
        self.backward_op = getattr(getattr(torch.ops, NAMESPACE), f"{self.name}_backward").default

    def _autograd_backward(self, ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        values, outputs = restore(ctx)
        found = self.gradients(gradients, values, outputs, [any_needed(needed) for needed in ctx.needs_input_grad])
        # Where an op takes lists of tensors, torch takes an empty list of anything for one and wants a list back.
        return tuple(
            [] if self._takes_tensor_lists and isinstance(value, list) and not value else gradient
            # torch leaves an argument that was not given, such as the free numbers, out of what it wants back.
            for gradient, value, _ in zip(found, values, ctx.needs_input_grad, strict=False)
        )

    def gradients(
        self,
        gradients: Sequence[Tensor | None],
        values: Sequence[Any],
        outputs: list[Tensor],
        needed: Sequence[bool],
    ) -> list[Any]:
        """One gradient for each of `values`, by the registered op: None, a tensor, or a list for a list of tensors.

        values: the arguments in schema order, the backend's name and its free numbers, if any; needed: which of them
        want a gradient.
        """
        if forward_ad._current_level >= 0:
            refuse_transforms(self.name, gradients)
        count = len(self.arguments)
        needs = dict(zip(self.arguments, needed[:count], strict=True))
        wanted = {name: needs[name] for name in self.differentiable}
        flat = self.backward_op(list(filled(gradients, outputs)), outputs, list(wanted.values()), *values)
        assemble = self._assemble or self._assemble_dense
        found = dict(zip(self.differentiable, assemble(self.record(*values[:count]), wanted, flat), strict=True))
        return [*(found.get(name) for name in self.arguments), *[None] * (len(values) - count)]

    def direct_gradients(
        self,
        plan: Plan,
        given: Given,
        outputs: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        needs: tuple[bool, ...],
    ) -> list[Tensor | None]:
        """One gradient for each tensor of the record, without the registered op where nothing has to see it."""
        wanted, slots = plan.wants(needs)
        if torch.is_grad_enabled() or not _are_plain(plan, gradients):
            wants = [wanted.get(name, False) for name in self.arguments]
            every = self.gradients(gradients, [*given, plan.wanted], list(outputs), [*wants, False])
            parts: Sequence[Any] = [every[field] for _, field in self._leaves]
        else:
            parts = plan.backward(given).backward(filled(gradients, outputs), outputs, wanted, given)  # type: ignore[misc]
            if plan.assembles:
                assert self._assemble is not None
                parts = self._assemble(given, wanted, flatten(parts, outputs[0]))
        flat: list[Tensor | None] = [None] * plan.count
        for index, first, count in slots:
            gradient = parts[index]
            if gradient is None:
                continue
            if count is None:
                flat[first] = gradient
            else:
                flat[first : first + count] = gradient
        return flat

    def _refuse_second_derivatives(self, ctx: Any, *gradients: Any) -> None:
        raise RuntimeError(
            f'{self.name}: its gradients have no gradients of their own; with backend="eager" autograd works them out'
        )

    def _refuse_vmap(self, *given: Any) -> None:
        # torch loops over other ops; over one that mutates or takes lists it cannot, and speaks of its own fallback.
        raise RuntimeError(f"{self.name}: vmap does not reach through it, expected a call for each element")

    def assembles(self, given: Given) -> bool:
        """Whether what a backend's backward returns is not yet one gradient per differentiable argument."""
        return self._assemble is not None and self._assembles(given)

    def _assemble_dense(self, given: Given, wanted: dict[str, bool], flat: list[Tensor]) -> list[Any]:
        remaining = iter(flat)
        gradients: list[Any] = []
        for name in self.differentiable:
            value = getattr(given, name)
            if isinstance(value, (list, tuple)):
                taken = [next(remaining) for _ in value]
                gradients.append(taken if wanted[name] else [None] * len(taken))
            else:
                gradient = next(remaining)
                gradients.append(gradient if wanted[name] and value is not None else None)
        return gradients


def _are_plain(plan: Plan, gradients: Sequence[Tensor | None]) -> bool:
    """Whether only autograd looks at the gradients of a plan's outputs."""
    present = [gradient for gradient in gradients if gradient is not None]
    if plan.knows(present):
        return is_quiet()
    plain = is_plain(present)
    if plain:
        plan.learn_gradients(present)
    return plain


def refuse_transforms(op: str, values: Sequence[Any]) -> None:
    """RuntimeError where an argument carries what an op boundary would lose: a tangent, or a gradient of torch.func.

    torch runs an op that it does not see through on the values alone: the tangent would come out as 0. torch.compile
    cannot ask for the transforms at work; of those that would go wrong in silence it has the level of forward mode.
    """
    if torch.compiler.is_compiling():
        lost = forward_ad._current_level >= 0
    else:
        by_func = any(
            interpreter.key() in _GRADIENT_TRANSFORMS for interpreter in _functorch.get_interpreter_stack() or []
        )
        lost = any(
            forward_ad.unpack_dual(tensor).tangent is not None
            or (by_func and _functorch.is_functorch_wrapped_tensor(tensor))
            for tensor in tensors_among(values)
        )
    if lost:
        raise RuntimeError(
            f"{op}: forward-mode derivatives and torch.func's transforms of gradients (jvp, grad, vjp, jacrev, "
            'hessian) do not reach through it, expected torch.autograd.grad or .backward(); backend="eager" takes '
            "them all"
        )


def _without_autocast(given: Given) -> AbstractContextManager[Any]:
    """Backends choose their own precisions; autocast inside them would undo the float32 statistics."""
    device = next((value.device.type for value in given if isinstance(value, Tensor)), "cpu")
    return torch.autocast(device, enabled=False) if autocast_is_on(device) else nullcontext()


def _is_free(number: Any) -> bool:
    """Whether a number is a tensor, or torch.compile, which has imported the module asked here, leaves it open."""
    if isinstance(number, Tensor):
        return True
    if number is None or not torch.compiler.is_compiling():
        return False
    return not torch.fx.experimental.symbolic_shapes.has_static_value(number)
