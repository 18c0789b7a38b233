"""The floor under every op: torch registration, backend choice, validation, jagged batches, native libraries."""

from argus_kernels.core.problems import Problems
from argus_kernels.core.records import Given
from argus_kernels.core.registry import Backend, Verdict, default_backend, explain, use_backend
from argus_kernels.core.sample import Sample
from argus_kernels.core.torch_op import Op, autocast

__all__ = [
    "Backend",
    "Given",
    "Op",
    "Problems",
    "Sample",
    "Verdict",
    "autocast",
    "default_backend",
    "explain",
    "use_backend",
]
