"""Loads the prebuilt libraries and runs the doctor."""

from __future__ import annotations

from dataclasses import asdict

from benchmarks.gpu_session.context import Context


def run(context: Context, what: str) -> None:
    """Reports whether the native libraries load, and the doctor's findings if not."""
    if what == "libraries":
        from argus_kernels.core import native

        context.say("libraries", reasons={name: native.why_not(name) for name in native.LIBRARIES})
    else:
        from argus_kernels import doctor

        context.say("doctor", **asdict(doctor.diagnose()))
