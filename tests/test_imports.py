"""The floors hold: each imports only from those below, op rooms never import each other, and importing is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FLOORS = [
    "argus_kernels.core",
    "argus_kernels.attention",
    "argus_kernels.ops",
    "argus_kernels.nn",
    "argus_kernels.testing",
    "python_model",
    "benchmarks",
]
FRONT_DOORS = {"argus_kernels", "argus_kernels.optim", "argus_kernels.host"}


def imported_modules(path: Path) -> set[str]:
    """Absolute names of what a file imports, relative imports resolved."""
    package = path.relative_to(REPOSITORY).parts[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            module = (base + (node.module or "")).rstrip(".")
            found.add(module)
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return found


def sources(folder: str) -> list[Path]:
    return sorted((REPOSITORY / folder).rglob("*.py"))


def floor_of(module: str) -> int | None:
    for height, floor in enumerate(FLOORS):
        if module == floor or module.startswith(floor + "."):
            return height
    return None


@pytest.mark.parametrize("height", range(len(FLOORS)), ids=FLOORS)
def test_no_floor_imports_from_above(height: int) -> None:
    for path in sources(FLOORS[height].replace(".", "/")):
        for module in imported_modules(path):
            above = floor_of(module)
            assert above is None or above <= height, f"{path.relative_to(REPOSITORY)} imports {module}"


@pytest.mark.parametrize("floor", ["argus_kernels/core", "argus_kernels/attention", "argus_kernels/ops"])
def test_lower_floors_do_not_use_the_front_door(floor: str) -> None:
    for path in sources(floor):
        used = imported_modules(path) & FRONT_DOORS
        assert not used, f"{path.relative_to(REPOSITORY)} imports {used}"


def test_op_rooms_do_not_import_each_other() -> None:
    rooms = [room for room in (REPOSITORY / "argus_kernels/ops").iterdir() if (room / "__init__.py").exists()]
    assert rooms
    for room in rooms:
        for path in room.rglob("*.py"):
            for module in imported_modules(path):
                if module.startswith("argus_kernels.ops."):
                    assert module.split(".")[2] == room.name, f"{path.relative_to(REPOSITORY)} imports {module}"


def test_every_op_has_its_room_its_test_and_its_page() -> None:
    from argus_kernels.ops import OPS

    for op in OPS:
        room = op.name.rstrip("_")
        for needed in (
            f"argus_kernels/ops/{room}/reference.py",
            f"argus_kernels/ops/{room}/samples.py",
            f"argus_kernels/ops/{room}/README.md",
            f"tests/ops/test_{room}.py",
        ):
            assert (REPOSITORY / needed).exists(), needed


def test_the_kernels_need_only_torch_and_numpy() -> None:
    allowed = {"torch", "numpy", "triton", "argus_kernels", *sys.stdlib_module_names}
    for path in sources("argus_kernels"):
        for module in imported_modules(path):
            assert module.split(".")[0] in allowed, f"{path.relative_to(REPOSITORY)} imports {module}"


def test_importing_loads_no_native_library_no_gpu_and_no_triton() -> None:
    program = (
        "import sys, argus_kernels, torch\n"
        "assert not torch.cuda.is_initialized()\n"
        "loaded = [str(path) for path in torch.ops.loaded_libraries if 'argus' in str(path)]\n"
        "assert not loaded, loaded\n"
        "assert not any(name.split('.')[0] == 'triton' for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY)
