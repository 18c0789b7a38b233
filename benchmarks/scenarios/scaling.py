"""`python -m benchmarks scaling`: how time and memory grow with events per user, candidates and table rows.

Every available backend is timed over increasing sizes; cost = factor · size^exponent is fitted to its points by least
squares on logarithms. A point that would exceed this machine's memory or the time budget, estimated from the previous
points, is left out, and the output says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.harness import results
from benchmarks.harness.ceilings import DTYPES
from benchmarks.harness.growth import Point, Scaling, Series, fit_power, foreseen, summary, to_json
from benchmarks.harness.memory import peak_extra_bytes
from benchmarks.harness.timing import Budget, Subject, measure, timer
from benchmarks.scenarios.curves import Call, Curve, curves

MEMORY_SHARE = 0.7
"""Of the memory that is free before a point, how much it may take."""
MIN_REPEATS = 3


def run(
    wanted: Sequence[Curve],
    device: str,
    dtype: str,
    seconds: float,
    backends: Sequence[str] = (),
    say: Callable[[str], None] = lambda sentence: None,
) -> Scaling:
    """Measures the curves, each for about its share of the time."""
    series: list[Series] = []
    ends = time.monotonic() + seconds
    for index, curve in enumerate(wanted):
        say(f"{curve.op} over {curve.axis}")
        chosen = tuple(backends) or serving_backends(curve, device, dtype)
        share = max(ends - time.monotonic(), 0.1 * seconds) / (len(wanted) - index)
        series += run_curve(curve, device, dtype, share, chosen)
    return Scaling(results.machine(device), results.versions(), results.source_commit(), series)


def run_curve(curve: Curve, device: str, dtype: str, seconds: float, backends: Sequence[str]) -> list[Series]:
    """The curve's series, their points measured together size by size."""
    series = [Series(curve.op, curve.axis, name, backend, dtype) for name in curve.passes for backend in backends]
    ends = time.monotonic() + seconds
    budget = Budget(0.5 * seconds / (len(curve.sizes) * len(series)), MIN_REPEATS, max_repeats=30)
    for size in curve.sizes:
        held = curve.bytes_of(size, DTYPES[dtype].itemsize)
        free = free_bytes(device)
        reasons = [reason_against(one, size, held, free, room(ends, seconds)) for one in series]
        if all(reasons):
            points = [Point(size, left_out=reason) for reason in reasons]
        else:
            arguments = curve.make(size, DTYPES[dtype], device)
            calls = [curve.passes[one.pass_](arguments, one.backend) for one in series]
            if size == curve.sizes[0]:
                _warm_up(calls)
            points = measured_points(size, device, calls, reasons, budget)
            del arguments, calls
        for one, point in zip(series, points, strict=True):
            one.points.append(point)
    for one in series:
        seen = one.measured()
        sizes = [point.size for point in seen]
        one.time_fit = fit_power(sizes, [point.ms.p50 for point in seen if point.ms]) if seen else None
        one.memory_fit = fit_power(sizes, [float(point.peak_bytes or 0) for point in seen]) if seen else None
    return series


def _warm_up(calls: Sequence[Call]) -> None:
    """Runs each call once: memory that libraries keep after their first call would otherwise count as the op's."""
    for call in calls:
        with suppress(torch.OutOfMemoryError, ValueError):
            call()


def room(ends: float, seconds: float) -> float:
    """Seconds that the next point may take: the remaining time, but at least a twentieth of the whole."""
    return max(ends - time.monotonic(), seconds / 20)


def measured_points(
    size: int, device: str, calls: Sequence[Call], reasons: Sequence[str | None], budget: Budget
) -> list[Point]:
    """The points of one size; those that are not left out are timed, interleaved."""
    peaks: dict[int, int | None] = {}
    failed: dict[int, str] = {}
    for index, call in enumerate(calls):
        if reasons[index] is None:
            try:
                peaks[index], _ = peak_extra_bytes(device, call)
            except (torch.OutOfMemoryError, ValueError) as error:
                failed[index] = str(error).splitlines()[0]
    subjects = [Subject.of(str(index), calls[index]) for index in peaks]
    timings = measure(subjects, timer(device, graphs=False), budget)
    points = []
    for index, reason in enumerate(reasons):
        if index in peaks:
            points.append(Point(size, timings[str(index)].total, peaks[index]))
        else:
            points.append(Point(size, left_out=failed.get(index, reason)))
    return points


def reason_against(series: Series, size: int, held: int, free: int, seconds_left: float) -> str | None:
    """Why the next point of a series is left out, or None; its arguments take `held` bytes."""
    if series.points and series.points[-1].left_out:
        return series.points[-1].left_out
    seen = series.measured()
    extra = foreseen([(point.size, float(point.peak_bytes or 0)) for point in seen], size) or 0.0
    if held + extra > MEMORY_SHARE * free:
        return f"needs about {(held + extra) / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
    once = foreseen([(point.size, point.ms.p50 / 1e3) for point in seen if point.ms], size)
    needed = (once or 0.0) * (MIN_REPEATS + 2)
    if needed > seconds_left:
        return f"needs about {needed:.0f} s, {seconds_left:.0f} s of the time budget are left"
    return None


def serving_backends(curve: Curve, device: str, dtype: str) -> tuple[str, ...]:
    """The backends that take the curve's smallest size, including "eager"."""
    arguments = curve.make(curve.sizes[0], DTYPES[dtype], device)
    serving = []
    for name in ("eager", *_declared(curve.op)):
        try:
            next(iter(curve.passes.values()))(arguments, name)()
        except ValueError:
            continue
        serving.append(name)
    return tuple(serving)


def _declared(op: str) -> list[str]:
    from argus_kernels import OPS

    return [backend.name for one in OPS if one.name == op for backend in one.backends]


def free_bytes(device: str) -> int:
    """Memory that is free for a point now."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo does not say how much memory is available")


def command(
    op: Annotated[list[str] | None, typer.Option(help="an op; may be repeated")] = None,
    backend: Annotated[list[str] | None, typer.Option(help="a backend; may be repeated")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16")] = "fp32",
    out: Annotated[Path, typer.Option(help="folder for scaling.json and the plots")] = Path("runs/benchmarks"),
    time_budget: Annotated[float, typer.Option(help="seconds, about")] = 240.0,
    rehearse: Annotated[bool, typer.Option(help="tiny sizes, to see that everything runs")] = False,
) -> None:
    """Cost against size: fitted exponents, time and memory plots."""
    try:
        wanted = _wanted(device, dtype, op or (), time_budget, rehearse)
    except ValueError as error:
        typer.echo(f"scaling: {error}", err=True)
        raise typer.Exit(2) from None
    found = run(wanted, device, dtype, time_budget, backend or (), lambda sentence: typer.echo(sentence))
    out.mkdir(parents=True, exist_ok=True)
    (out / "scaling.json").write_text(to_json(found))
    from benchmarks.report import plots

    for curve in wanted:
        figure = plots.cost_against_size([one for one in found.series if one.op == curve.op])
        for suffix in ("png", "svg"):
            plots.save(figure, out / f"scaling_{curve.op}.{suffix}")
    typer.echo("\n".join(summary(found)))
    typer.echo(f"written to {out}")


def _wanted(device: str, dtype: str, ops: Sequence[str], time_budget: float, rehearse: bool) -> list[Curve]:
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device is {device!r}, expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no GPU")
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    if time_budget <= 0:
        raise ValueError(f"time budget is {time_budget}, expected seconds above 0")
    known = {curve.op: curve for curve in curves(device, tiny=rehearse)}
    unknown = sorted(set(ops) - set(known))
    if unknown:
        raise ValueError(f"op is {unknown[0]!r}, expected one of {', '.join(known)}")
    return [known[op] for op in ops] if ops else list(known.values())


def register(app: typer.Typer) -> None:
    """Adds the command to `python -m benchmarks`."""
    app.command("scaling")(command)
