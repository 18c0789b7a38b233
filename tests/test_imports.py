"""The floors hold: each imports only from those below, op rooms never import each other, and importing is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
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


FIRST_CALL = {
    f"argus_kernels.ops.{op}.direct": f"argus_kernels.ops.{op}" for op in ("decode_attention", "decode_linear")
}
"""A room's direct path asks its own front door once, at its first call."""


def imports_of(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Each import of a file: the module's absolute name, and the names taken from it."""
    package = path.relative_to(REPOSITORY).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            yield (base + (node.module or "")).rstrip("."), [alias.name for alias in node.names]


def imported_modules(path: Path) -> set[str]:
    """Absolute names of what a file imports: modules, and the names taken from them."""
    return {name for module, names in imports_of(path) for name in (module, *(f"{module}.{one}" for one in names))}


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


def module_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def cycle_in(files: list[Path]) -> list[str]:
    """Files that import each other in a circle, imports inside functions and for type checkers counted."""
    modules = {module_of(path) for path in files}
    graph: dict[str, set[str]] = {}
    for path in files:
        found: set[str] = set()
        for module, names in imports_of(path):
            # `from package import module` reads the module, any other name is read from the package's __init__.
            found.update(f"{module}.{name}" if f"{module}.{name}" in modules else module for name in names or [""])
        importer = module_of(path)
        graph[importer] = (found & modules) - {importer, FIRST_CALL.get(importer)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1]
        return cycle
    return []


def test_no_files_import_each_other_in_a_circle() -> None:
    files = [
        path for folder in ("argus_kernels", "python_model", "benchmarks", "build_support") for path in sources(folder)
    ]
    assert cycle_in(files) == []


def test_a_circle_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "REPOSITORY", tmp_path)
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "below.py").write_text("def late():\n    from package import above\n    return above\n")
    (folder / "above.py").write_text("from package.middle import value\n")
    (folder / "middle.py").write_text("from package import below\nvalue = below\n")
    assert set(cycle_in(sources("package"))) == {"package.below", "package.above", "package.middle"}
    (folder / "below.py").write_text("")
    assert cycle_in(sources("package")) == []


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
    from argus_kernels import OPS

    rooms = {path.parent.name for path in (REPOSITORY / "argus_kernels/ops").glob("*/__init__.py")}
    assert {op.name.rstrip("_") for op in OPS} == rooms, "argus_kernels/__init__.py does not import every room"
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
