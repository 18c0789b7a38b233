"""Where a training step spends its time: torch's profiler over a few steps, summed by phase, by module and by op."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._C._autograd import DeviceType
from torch.autograd.profiler import record_function

from python_model.io.disk import replace_text, require_writable, writing

WARM_UP_STEPS = 2
"""Steps before the profiled ones: the first allocate memory, choose kernels and load libraries."""
DIRECTORY, TRACE, TABLE = "profile", "trace.json.gz", "table.txt"
_PHASE, _MODULE = "phase: ", "module: "
_BACKWARD = "autograd::engine::evaluate_function: "
_ROWS = 25


@dataclass(frozen=True)
class Line:
    """One row of a table: milliseconds on the CPU and on the GPU, and calls, all per step."""

    name: str
    cpu_ms: float
    gpu_ms: float
    calls: float


@dataclass(frozen=True)
class Summary:
    """What `StepProfile` found. phases: inclusive times. modules, ops: times of their own, the longest first."""

    steps: int
    phases: list[Line]
    modules: list[Line]
    ops: list[Line]

    def text(self) -> str:
        """Three tables in plain text."""
        parts = [f"Milliseconds per step, over {self.steps} steps; times on the CPU are those of the main threads."]
        for title, lines in (
            ("Phase (inclusive)", self.phases),
            ("Module, forward and backward (own time)", self.modules[:_ROWS]),
            ("Op (own time)", self.ops[:_ROWS]),
        ):
            width = max([len(title), *(len(line.name) for line in lines)])
            parts.append(f"\n{title:<{width}}  {'CPU ms':>10} {'GPU ms':>10} {'calls':>8}")
            parts += [f"{a.name:<{width}}  {a.cpu_ms:>10.2f} {a.gpu_ms:>10.2f} {a.calls:>8.1f}" for a in lines]
        return "\n".join(parts) + "\n"


class StepProfile:
    """Profiles `steps` steps of a training run after a warm-up and writes OUT/profile/.

    trace.json.gz opens in ui.perfetto.dev; table.txt holds the summary, which `done` gets too. The profiled steps
    compute the same numbers as any other. Time in a module counts what autograd does for it in the backward pass.
    """

    def __init__(self, run: Path, steps: int, done: Callable[[Summary], None] | None = None) -> None:
        self.steps = steps
        self.directory = run / DIRECTORY
        self._done = done
        self._seen = 0
        self._profiler: Any = None
        self._hooks: list[Any] = []

    @property
    def is_recording(self) -> bool:
        """Whether the step at work is one of those profiled."""
        return self._profiler is not None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Marks a part of the step: "data", "forward", "backward", "optimiser"."""
        if not self.is_recording:
            yield
            return
        with record_function(_PHASE + name):
            yield

    def begin_step(self, model: nn.Module) -> None:
        """Before a step asks for its data."""
        if self._seen == WARM_UP_STEPS:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._hooks = _mark_modules(model)
            self._profiler = torch.profiler.profile(activities=activities)
            self._profiler.start()

    def end_step(self) -> None:
        """After the optimiser's update; after the last profiled step the files are written."""
        self._seen += 1
        if self.is_recording and self._seen == WARM_UP_STEPS + self.steps:
            self._write(self._stop())

    def close(self) -> None:
        """Ends a recording that the run did not live to finish, without files."""
        if self.is_recording:
            self._stop()

    def _stop(self) -> Any:
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        for hook in self._hooks:
            hook.remove()
        return profiler

    def _write(self, profiler: Any) -> None:
        found = summary(profiler.events(), self.steps)
        with writing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
        trace = self.directory / TRACE
        require_writable(trace)
        with writing(trace):
            profiler.export_chrome_trace(str(trace))
        replace_text(self.directory / TABLE, found.text())
        if self._done is not None:
            self._done(found)


def require_steps(profile: int, run_steps: int, done: int) -> None:
    """ValueError where a run has not enough steps left for the profile and its warm-up."""
    needed, left = WARM_UP_STEPS + profile, run_steps - done
    if needed > left:
        raise ValueError(
            f"--profile {profile} needs {needed} steps ({WARM_UP_STEPS} to warm up), the run has {left} left: "
            "profile fewer or pass more --steps"
        )


def summary(events: Iterable[Any], steps: int) -> Summary:
    """Sums the events of torch's profiler over phases, modules and ops, and divides by the steps."""
    every = [event for event in events if event.device_type == DeviceType.CPU]
    forward_modules = _modules_by_sequence(every)
    phases: dict[str, _Sum] = defaultdict(_Sum)
    modules: dict[str, _Sum] = defaultdict(_Sum)
    ops: dict[str, _Sum] = defaultdict(_Sum)
    for event in every:
        if event.name.startswith(_PHASE):
            phases[event.name.removeprefix(_PHASE)].add_inclusive(event)
            continue
        module = _module_of(event, forward_modules)
        if module is not None:
            modules[module].add_own(event, calls=event.name.startswith(_MODULE))
        if not event.name.startswith((_MODULE, _BACKWARD)):
            ops[event.name].add_own(event)
    return Summary(
        steps,
        _lines(phases, steps),
        sorted(_lines(modules, steps), key=_longest),
        sorted(_lines(ops, steps), key=_longest),
    )


@dataclass
class _Sum:
    cpu: float = 0.0
    gpu: float = 0.0
    calls: int = field(default=0)

    def add_inclusive(self, event: Any) -> None:
        self.cpu += event.cpu_time_total
        self.gpu += event.device_time_total
        self.calls += 1

    def add_own(self, event: Any, calls: bool = True) -> None:
        self.cpu += event.self_cpu_time_total
        self.gpu += event.self_device_time_total
        self.calls += calls


def _lines(sums: Mapping[str, _Sum], steps: int) -> list[Line]:
    return [Line(name, s.cpu / 1e3 / steps, s.gpu / 1e3 / steps, s.calls / steps) for name, s in sums.items()]


def _longest(line: Line) -> float:
    return -max(line.cpu_ms, line.gpu_ms)


def _modules_by_sequence(events: Iterable[Any]) -> dict[int, str]:
    """The module of each autograd node, by its sequence number.

    A node takes the number that the op which makes it saw last; ops before it that need no gradient see it too.
    """
    latest: dict[int, tuple[float, str]] = {}
    for event in events:
        number = event.sequence_nr
        if number < 0 or _ancestor(event, _BACKWARD) is not None:
            continue
        module = _ancestor(event, _MODULE)
        if module is not None and event.time_range.start >= latest.get(number, (float("-inf"), ""))[0]:
            latest[number] = event.time_range.start, module.name.removeprefix(_MODULE)
    return {number: name for number, (_, name) in latest.items()}


def _module_of(event: Any, forward_modules: Mapping[int, str]) -> str | None:
    module = _ancestor(event, _MODULE)
    if module is not None:
        return str(module.name.removeprefix(_MODULE))
    node = _ancestor(event, _BACKWARD)
    return None if node is None else forward_modules.get(node.sequence_nr)


def _ancestor(event: Any, prefix: str) -> Any:
    """The innermost event around this one, itself included, whose name begins so; None where there is none."""
    while event is not None and not event.name.startswith(prefix):
        event = event.cpu_parent
    return event


def _mark_modules(model: nn.Module) -> list[Any]:
    """Hooks that record every module's forward pass under its path."""
    hooks: list[Any] = []
    for path, module in model.named_modules():
        open_marks: list[ExitStack] = []

        def enter(module: nn.Module, inputs: Any, path: str = path, marks: list[ExitStack] = open_marks) -> None:
            stack = ExitStack()
            stack.enter_context(record_function(_MODULE + (path or type(module).__name__)))
            marks.append(stack)

        def leave(module: nn.Module, inputs: Any, output: Any, marks: list[ExitStack] = open_marks) -> None:
            marks.pop().close()

        hooks.append(module.register_forward_pre_hook(enter))
        hooks.append(module.register_forward_hook(leave, always_call=True))
    return hooks
