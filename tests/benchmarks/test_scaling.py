"""Cost against size: the fit, what is left out and why, the files."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks.harness.growth import Point, Scaling, Series, fit_power, foreseen, from_json, summary, to_json
from benchmarks.report import plots
from benchmarks.scenarios import scaling
from benchmarks.scenarios.curves import Curve, curves
from python_model.reporting.interactive import Marks, page_figure

SIZES = (10, 20, 40, 80)


def test_the_fit_is_least_squares_on_logarithms() -> None:
    sizes = [512, 1024, 2048, 4096, 8192]
    costs = [3.1, 11.9, 51.0, 190.0, 800.0]
    fit = fit_power(sizes, costs)
    assert fit is not None
    (slope, intercept), covariance = np.polyfit(np.log(sizes), np.log(costs), 1, cov=True)
    assert fit.exponent == pytest.approx(slope)
    assert fit.factor == pytest.approx(np.exp(intercept))
    assert fit.standard_error == pytest.approx(np.sqrt(covariance[0, 0]))


def test_an_exact_power_law_is_found_exactly() -> None:
    fit = fit_power([1, 10, 100], [2.0, 2.0 * 10**1.5, 2.0 * 10**3])
    assert fit is not None
    assert fit.exponent == pytest.approx(1.5)
    assert fit.factor == pytest.approx(2.0)
    assert fit.standard_error == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("sizes", "costs"), [([8], [1.0]), ([8, 8], [1.0, 2.0]), ([8, 16], [0.0, 1.0])])
def test_too_few_points_have_no_fit(sizes: list[int], costs: list[float]) -> None:
    assert fit_power(sizes, costs) is None


def test_two_points_have_an_exponent_without_an_error() -> None:
    fit = fit_power([1, 2], [1.0, 4.0])
    assert fit is not None and fit.standard_error is None
    assert fit.exponent == pytest.approx(2.0)
    assert fit.factor == pytest.approx(1.0)


def test_what_is_foreseen_follows_the_last_slope_but_never_shrinks() -> None:
    assert foreseen([], 100) is None
    assert foreseen([(10, 5.0)], 40) == pytest.approx(20.0)
    assert foreseen([(10, 1.0), (20, 4.0)], 40) == pytest.approx(16.0)
    assert foreseen([(10, 4.0), (20, 1.0)], 40) == pytest.approx(2.0)


def curve(call: Callable[[int], Any], sizes: tuple[int, ...] = SIZES, bytes_each: int = 1) -> Curve:
    return Curve(
        "toy", "things", sizes, lambda size, dtype, device: {"size": size},
        {"forward": lambda given, backend: lambda: call(given["size"])},
        lambda size, element: size * bytes_each,
    )  # fmt: skip


def test_a_slow_op_has_its_exponent() -> None:
    (series,) = scaling.run_curve(curve(lambda size: time.sleep(size**2 * 2e-6)), "cpu", "fp32", 5.0, ("toy",))
    assert [point.left_out for point in series.points] == [None] * 4
    assert series.time_fit is not None
    assert 1.5 < series.time_fit.exponent < 2.2


def test_points_that_memory_has_no_room_for_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "free_bytes", lambda device: 3 << 30)
    made: list[int] = []
    big = curve(made.append, bytes_each=1 << 26)
    (series,) = scaling.run_curve(big, "cpu", "fp32", 5.0, ("toy",))
    assert set(made) == {10, 20}
    assert [point.left_out for point in series.points[:2]] == [None, None]
    assert series.points[2].left_out == "needs about 2.5 GiB, 3.0 GiB are free"
    assert series.points[3].left_out == series.points[2].left_out
    assert any("40 left out: needs about 2.5 GiB" in line for line in summary(result(series)))


def test_points_that_the_time_budget_has_no_room_for_are_left_out() -> None:
    slow = curve(lambda size: time.sleep(size * 1e-3), sizes=(10, 20, 100_000))
    started = time.monotonic()
    (series,) = scaling.run_curve(slow, "cpu", "fp32", 5.0, ("toy",))
    assert time.monotonic() - started < 60.0
    assert series.points[1].ms is not None
    assert "of the time budget are left" in (series.points[2].left_out or "")


def test_what_a_backend_refuses_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(size: int) -> None:
        if size > 20:
            raise ValueError("toy[cpp]: too large\nmore")

    (series,) = scaling.run_curve(curve(call), "cpu", "fp32", 2.0, ("toy",))
    assert [point.left_out for point in series.points] == [None, None, "toy[cpp]: too large", "toy[cpp]: too large"]


def result(*series: Series) -> Scaling:
    return Scaling({"name": "toy"}, {"torch": "2"}, "abc", list(series))


def test_json_goes_round() -> None:
    (series,) = scaling.run_curve(curve(lambda size: None), "cpu", "fp32", 0.5, ("toy",))
    series.points.append(Point(160, left_out="no room"))
    found = result(series)
    assert from_json(to_json(found)) == found


@pytest.mark.parametrize("op", [one.op for one in curves("cpu")])
def test_the_curves_run_on_the_ops(op: str) -> None:
    one = next(one for one in curves("cpu", tiny=True) if one.op == op)
    given = one.make(one.sizes[0], torch.float32, "cpu")
    for make in one.passes.values():
        make(given, "reference")()
    full = next(one for one in curves("cpu") if one.op == op)
    held = sum(value.numel() * value.element_size() for value in given.values() if isinstance(value, torch.Tensor))
    assert one.bytes_of(one.sizes[0], 4) >= 0.2 * held, "the estimate is of the arguments' order"
    assert len(full.sizes) >= 5 and full.sizes == tuple(sorted(full.sizes))


def test_the_step_updates_the_rows_it_read() -> None:
    one = next(one for one in curves("cpu", tiny=True) if one.op == "triple_embedding")
    given = one.make(100, torch.float32, "cpu")
    before = given["table"].detach().clone()
    one.passes["step"](given, "reference")()
    read = torch.zeros(100, dtype=torch.bool)
    read[given["ids"].flatten()] = True
    changed = (given["table"].detach() != before).any(1)
    assert torch.equal(changed, read)
    assert torch.equal(given["state"] > 0, read)


def run_command(*arguments: str) -> Any:
    app = typer.Typer()
    scaling.register(app)
    return CliRunner().invoke(app, list(arguments))


def test_the_command_writes_points_and_plots(tmp_path: Path) -> None:
    options = ("--op", "sampled_softmax_loss", "--backend", "reference", "--rehearse", "--time-budget", "6")
    done = run_command(*options, "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"scaling.json", "scaling_sampled_softmax_loss.png", "scaling_sampled_softmax_loss.svg"}
    found = from_json((tmp_path / "scaling.json").read_text())
    assert [series.pass_ for series in found.series] == ["forward", "forward_backward"]
    assert all(series.measured() for series in found.series)
    assert "time ~ candidates^" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--op", "softmax"), "op is 'softmax', expected one of causal_attention"),
        (("--dtype", "fp8"), "dtype is 'fp8', expected one of"),
        (("--device", "tpu"), "device is 'tpu', expected cpu or cuda"),
        (("--time-budget", "0"), "time budget is 0.0, expected seconds above 0"),
    ],
)
def test_bad_options_are_one_sentence(arguments: tuple[str, ...], message: str) -> None:
    done = run_command(*arguments)
    assert done.exit_code == 2
    assert message in done.output


def test_the_figure_shows_points_and_fits() -> None:
    (series,) = scaling.run_curve(curve(lambda size: time.sleep(size * 1e-4)), "cpu", "fp32", 1.0, ("toy",))
    figure = plots.cost_against_size([series], plots.DARK)
    time_panel = figure.axes[0]
    points, fitted = time_panel.lines
    assert np.asarray(points.get_xdata()).tolist() == list(SIZES)
    assert np.asarray(fitted.get_xdata()).tolist() == [SIZES[0], SIZES[-1]]


def test_a_page_gets_the_values_and_a_legend_of_its_own() -> None:
    found = [scaling.run_curve(curve(lambda size: time.sleep(size * 1e-4)), "cpu", "fp32", 1.0, ("toy",))[0]]
    marks = Marks("x")
    figure = plots.cost_against_size([*found, dataclasses.replace(found[0], backend="peer")], plots.LIGHT, marks)
    assert all(axes.get_legend() is None for axes in figure.axes)
    names = [one.facets for one in marks.series]
    assert names == [(found[0].name,), (found[0].name,), ("peer, forward",), ("peer, forward",)]
    assert [point[0] for point in marks.series[0].points] == list(SIZES)
    text = page_figure(figure, marks, plots.COLOURS)
    assert text.count("<button") == 2 and "var(--series-1)" in text and plots.LIGHT.series[0] not in text
