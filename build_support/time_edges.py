"""Writes csrc/attention/time_edges.h: the time buckets of argus_kernels/attention/relative_bias.py as C++ constants.

    python -m build_support.time_edges

Run it when the definition changes; a test compares the header with its output.
"""

from __future__ import annotations

from pathlib import Path

from argus_kernels.attention.relative_bias import LOG_STEP, threshold_values

HEADER = Path(__file__).resolve().parents[1] / "csrc/attention/time_edges.h"
_LARGEST = 2**63 - 1
_TEMPLATE = """\
// The time buckets of the relative biases. Written by build_support/time_edges.py from their definition in
// argus_kernels/attention/relative_bias.py.
#pragma once

namespace argus {{

// Bucket b holds edge[b] ≤ |x| < edge[b + 1]; no difference below int64's maximum reaches a later bucket.
constexpr int kTimeBuckets = {count};

// A bucket's width in the logarithm of the seconds.
constexpr float kTimeLogStep = {step}f;

}}  // namespace argus

// The edges of all buckets. A macro, because they are a constant of the host here and of the device there.
// clang-format off
#define ARGUS_TIME_EDGES \\
{edges}
// clang-format on
"""


def header_text() -> str:
    """The header, with every edge that a difference below int64's maximum reaches."""
    count = 1
    while threshold_values(count + 1)[-1] < _LARGEST:
        count += 1
    edges = threshold_values(count)
    lines = [", ".join(f"{edge}" for edge in edges[first : first + 4]) for first in range(0, count, 4)]
    return _TEMPLATE.format(count=count, step=LOG_STEP, edges=", \\\n".join(f"  {line}" for line in lines))


if __name__ == "__main__":
    HEADER.write_text(header_text())
