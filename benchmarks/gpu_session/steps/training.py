"""A pre-training step of the reference model on one backend for all ops."""

from __future__ import annotations

from dataclasses import asdict, replace

from benchmarks.gpu_session.context import Context
from benchmarks.gpu_session.plan import PRESETS
from benchmarks.gpu_session.steps.machine import environment
from benchmarks.scenarios import end_to_end


def run(context: Context, backend: str) -> None:
    """Reports milliseconds, events per second, share of the matrix rate and peak memory."""
    preset = PRESETS[context.device]
    seconds = 1.0 if context.rehearse else min(10.0, max(context.left() / 3, 1.0))
    plan = end_to_end.make_plan(context.device, [preset], [backend], None, seconds, context.rehearse, parts=["step"])
    plan = replace(plan, stock=False)
    ceilings = environment(context).ceilings
    for result in end_to_end.step_results(plan, preset, ceilings):
        context.say("training", **asdict(result))
