"""The steps of a session, in order, with their shares of its seconds and their processes.

Nothing here imports torch: the conductor starts the first processes at once.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_session.conductor import Step, Task
from benchmarks.gpu_session.context import Context

OPS = (
    "causal_attention", "sampled_softmax_loss", "triple_embedding", "decode_attention", "rowwise_adagrad_",
    "hstu_attention", "feedback_loss", "pairwise_loss",
)  # fmt: skip
"""The ops that have kernels for a GPU, those first that matter most."""
BACKENDS = {"cuda": ("cuda", "triton"), "cpu": ("cpp", "triton")}
"""The backends that are judged and timed, by the session's device."""
TIMED = {
    "cuda": (
        ("causal_attention", "uniform_8192_head_64"),
        ("causal_attention", "uniform_8192_head_128"),
        ("sampled_softmax_loss", "rows_65536_candidates_16384"),
        ("triple_embedding", "events_131072_sparse"),
        ("causal_attention", "lognormal_64_biases"),
        ("decode_attention", "users_128_events_8192"),
        ("rowwise_adagrad_", "rows_262144_of_4m"),
        ("feedback_loss", "rows_262144"),
        ("causal_attention", "lognormal_64"),
        ("hstu_attention", "uniform_8192_head_64"),
        ("pairwise_loss", "events_1048576"),
        ("triple_embedding", "events_131072"),
    ),
    "cpu": (("causal_attention", ""), ("rowwise_adagrad_", "")),
}
"""Op and case, in order; an empty case is the op's first of several tiles (`Op.tiles`)."""
MMA_SYNC = ("events_131072", "rows_65536_candidates_16384", "uniform_8192_head_128", "uniform_8192_head_64")
"""The cases in `TIMED` whose CUDA kernels of TMA and wgmma are timed beside those of mma.sync."""
TUNED = {"cuda": ("causal_attention", "sampled_softmax_loss"), "cpu": ("causal_attention",)}
TUNING_CASES = {"causal_attention": "uniform_8192_head_64", "sampled_softmax_loss": "rows_65536_candidates_16384"}
"""The production case that a GPU is tuned on; in a rehearsal the op's first of several tiles."""
COMPILERS = 8
"""Processes that compile configurations into Triton's cache before they are timed one by one."""
SANITIZERS = ("memcheck", "racecheck")
PROFILED = (
    ("causal_attention", "cuda", "uniform_8192_head_64", "forward"),
    ("causal_attention", "triton", "uniform_8192_head_64", "forward"),
    ("causal_attention", "cuda", "uniform_8192_head_128", "backward"),
    ("sampled_softmax_loss", "cuda", "rows_65536_candidates_16384", "forward"),
    ("sampled_softmax_loss", "triton", "rows_65536_candidates_16384", "forward"),
    ("triple_embedding", "cuda", "events_131072_sparse", "forward"),
)
TRAINED = {"cuda": ("cuda", "triton", "reference"), "cpu": ("cpp", "reference")}
"""The backends of the training step."""
PRESETS = {"cuda": "126m", "cpu": "tiny"}

GOLDEN = ("instructions", "wgmma", "TMA")
"""The parts of golden vectors, each with its own kernels (golden.PARTS)."""

UNCHECKED = (("ARGUS_DEVICE_CHECKS", "0"),)
"""Values on the device are not checked where time is measured."""
OTHER_KERNELS = (
    ("mma.sync", MMA_SYNC, (*UNCHECKED, ("ARGUS_WGMMA", "0"))),
    ("blocks alone", ("rows_65536_candidates_16384",), (*UNCHECKED, ("ARGUS_CLUSTERS", "0"))),
)
"""Kinds of CUDA kernels that are timed beside the usual ones: name, cases, and the environment that chooses them."""


def prepare(context: Context) -> list[Task]:
    """Whether the libraries load, and the doctor's report."""
    return [Task("libraries", ("libraries",)), Task("doctor", ("doctor",))]


def build(context: Context) -> list[Task]:
    """Builds the native libraries if those for this device do not load."""
    reasons = {name: reason for line in context.found().of("libraries") for name, reason in line["reasons"].items()}
    needed = ("cpu", "cuda") if context.device == "cuda" else ("cpu",)
    missing = [f"{name}: {reasons[name]}" for name in needed if reasons.get(name)]
    if not missing:
        return []
    if context.rehearse:
        context.leave_out("build", f"a rehearsal builds nothing; {'; '.join(missing)}")
        return []
    return [Task("build", ("build",), environment=(("ARGUS_CUDA", "1"), ("ARGUS_CUDA_ARCHS", "90a")))]


def machine(context: Context) -> list[Task]:
    """The machine and its ceilings."""
    return [Task("machine")]


def error_rule(context: Context) -> list[Task]:
    """One process per op and backend, so that a fault affects no other; on a CPU one per two ops.

    Triton compiles for seconds, once per dtype, so each dtype has its own process, bfloat16 first.
    """
    backends = BACKENDS[context.device]
    if context.device == "cpu":
        # There the imports of a process take longer than its checks.
        pairs = [OPS[part::4] for part in range(4)]
        return [Task(", ".join(ops), (",".join(ops), ",".join(backends))) for ops in pairs]
    found = []
    for dtypes in ("bf16", "fp32", "fp16"):
        for op in OPS:
            if dtypes == "bf16":
                found.append(Task(f"{op} cuda", (op, "cuda")))
            found.append(Task(f"{op} triton {dtypes}", (op, "triton", dtypes)))
    return found


def binding(context: Context) -> list[Task]:
    """In a rehearsal, binds every launch with Triton's own binder, in processes without the interpreter."""
    return [Task("triton", environment=(("TRITON_INTERPRET", "0"),))] if context.device == "cpu" else []


def golden(context: Context) -> list[Task]:
    """A process for each part, so that a fault or a hang affects no other; in a rehearsal one, for one executor."""
    if context.device == "cpu":
        return [Task(", ".join(GOLDEN), (",".join(GOLDEN),))]
    return [Task(part, (part,)) for part in GOLDEN]


def timing(context: Context) -> list[Task]:
    """A process for each case; last, one more where other kernels are timed, too."""
    cases = TIMED[context.device]
    usual = [Task(f"{op} {case}".strip(), (op, *filter(None, [case])), environment=UNCHECKED) for op, case in cases]
    return usual + [
        Task(f"{op} {case} {kernels}", (op, case, kernels), environment=environment)
        for kernels, named, environment in OTHER_KERNELS
        for op, case in cases
        if case in named
    ]


def tuning_compile(context: Context) -> list[Task]:
    """Processes that each compile a part of the configurations."""
    if context.device != "cuda":
        context.leave_out("compiling ahead of tuning", f"device is {context.device}, and nothing is compiled there")
        return []
    return [
        Task(f"{op} part {part}", (op, str(part)), environment=UNCHECKED)
        for part in range(parts_of_compiling())
        for op in TUNED[context.device]
    ]


def parts_of_compiling() -> int:
    """The number of processes that share the configurations of an op."""
    return COMPILERS // len(TUNED["cuda"])


def tuning(context: Context) -> list[Task]:
    """A process for each op."""
    return [Task(op, (op,), environment=UNCHECKED) for op in TUNED[context.device]]


def sanitizer(context: Context) -> list[Task]:
    """A process for each op and tool of compute-sanitizer."""
    if not _tool(context, "compute-sanitizer"):
        return []
    # Without the caching allocator every tensor is a separate allocation with its own bounds.
    uncached = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"), ("CUDA_MODULE_LOADING", "LAZY"))
    return [Task(f"{op} {tool}", (op, tool), environment=uncached) for tool in SANITIZERS for op in OPS]


def profile(context: Context) -> list[Task]:
    """A process for each profiled call."""
    if not _tool(context, "ncu"):
        return []
    return [Task(" ".join(call), call, environment=UNCHECKED) for call in PROFILED]


def training(context: Context) -> list[Task]:
    """A process for each backend."""
    return [Task(backend, (backend,), environment=UNCHECKED) for backend in TRAINED[context.device]]


def find_tool(name: str) -> str | None:
    """The path of a program of the CUDA toolkit; None if it is neither on PATH nor in /usr/local/cuda."""
    place = Path("/usr/local/cuda/bin") / name
    return shutil.which(name) or (str(place) if place.exists() else None)


def _tool(context: Context, name: str) -> str | None:
    if context.device != "cuda":
        context.leave_out(name, f"device is {context.device}, and {name} watches a GPU")
        return None
    found = find_tool(name)
    if found is None:
        context.leave_out(name, f"{name} is neither on PATH nor in /usr/local/cuda/bin")
    return found


STEPS: Sequence[Step] = (
    Step("prepare", 6, 10, prepare, jobs=2, rehearsal_jobs=2),
    Step("build", 0, 0, build),
    Step("machine", 8, 8, machine),
    Step("binding", 0, 20, binding),
    Step("error_rule", 110, 50, error_rule, jobs=14, rehearsal_jobs=2),
    Step("golden", 28, 30, golden, jobs=3),
    Step("timing", 150, 16, timing),
    Step("tuning_compile", 25, 1, tuning_compile, jobs=COMPILERS),
    Step("tuning", 65, 14, tuning),
    Step("sanitizer", 60, 1, sanitizer, jobs=8),
    Step("profile", 40, 1, profile),
    Step("training", 45, 20, training, rehearsal_jobs=2),
)
