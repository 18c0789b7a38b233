"""Runs a script on every instruction set of this machine and holds what it prints to be the same."""

from __future__ import annotations

import os

from tests import warm


def require_the_same_bits(script: str) -> None:
    """`script` prints the instruction set it ran on ("isa=…"), then a checksum with one thread and one with four."""
    here, *checksums = _printed(script)
    assert checksums[0] == checksums[1]
    for isa in ("portable", "avx2"):
        there, *others = _printed(script, isa)
        assert others == checksums
        assert there == "isa=portable" or here != "isa=portable", there


def _printed(script: str, isa: str | None = None) -> list[str]:
    done = warm.python(["-c", script], {**os.environ, **({"ARGUS_CPU_ISA": isa} if isa else {})})
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
