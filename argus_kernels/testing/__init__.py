"""How an op is judged: against float64 truth, by how far plain PyTorch in the same dtype is from it."""

from argus_kernels.testing.compare import Comparison, compare, require_close
from argus_kernels.testing.harness import Run, captured_arguments, judged, run_op, small_samples
from argus_kernels.testing.poison import poisoned_memory

__all__ = [
    "Comparison",
    "Run",
    "captured_arguments",
    "compare",
    "judged",
    "poisoned_memory",
    "require_close",
    "run_op",
    "small_samples",
]
