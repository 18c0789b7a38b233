"""The build: which libraries are decided on and why, what is compiled, and what arrives in another environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from build_support import compile as native  # noqa: E402
from build_support import decide  # noqa: E402
from build_support.decide import BuildError, CudaDecision, Toolkit  # noqa: E402
from tests import warm  # noqa: E402
from tests.build_support.trees import compiled_here, copy_of_tree  # noqa: E402

TOOLKIT = Toolkit(Path("/cuda/bin/nvcc"), Path("/cuda"), "13.0", frozenset({"75", "80", "90", "90a", "100", "100a"}))
OLD_TOOLKIT = Toolkit(Path("/cuda/bin/nvcc"), Path("/cuda"), "12.0", frozenset({"75", "80", "90", "90a"}))
DEFAULT = ("80", "90a", "100+PTX")
NOTHING_ON_PATH = {"PATH": "/nonexistent"}


class TestCudaDecision:
    @pytest.mark.parametrize(
        ("environment", "toolkit", "gpu", "expected"),
        [
            ({}, None, False, CudaDecision(False, "no working nvcc in PATH or /usr/local/cuda")),
            ({}, None, True, CudaDecision(False, "no working nvcc in PATH or /usr/local/cuda")),
            ({"CUDA_HOME": "/x"}, None, True, CudaDecision(False, "no working nvcc in CUDA_HOME")),
            ({"ARGUS_CUDA": "0"}, TOOLKIT, True, CudaDecision(False, "ARGUS_CUDA=0")),
            (
                {"ARGUS_CUDA": "0", "ARGUS_CUDA_ARCHS": "90a"},
                TOOLKIT,
                True,
                CudaDecision(False, "ARGUS_CUDA=0"),
            ),
            ({}, TOOLKIT, True, CudaDecision(True, "an NVIDIA GPU is present, default architectures", DEFAULT)),
            ({"ARGUS_CUDA": "1"}, TOOLKIT, False, CudaDecision(True, "ARGUS_CUDA=1, default architectures", DEFAULT)),
            (
                {"ARGUS_CUDA_ARCHS": "90a"},
                TOOLKIT,
                False,
                CudaDecision(True, "ARGUS_CUDA_ARCHS is set", ("90a",)),
            ),
            (
                {"TORCH_CUDA_ARCH_LIST": "8.0 9.0a;10.0+PTX"},
                TOOLKIT,
                False,
                CudaDecision(True, "TORCH_CUDA_ARCH_LIST is set", ("80", "90a", "100+PTX")),
            ),
            (
                {"ARGUS_CUDA": "1", "ARGUS_CUDA_ARCHS": "80", "TORCH_CUDA_ARCH_LIST": "9.0"},
                TOOLKIT,
                True,
                CudaDecision(True, "ARGUS_CUDA=1, ARGUS_CUDA_ARCHS is set", ("80",)),
            ),
            (
                {},
                OLD_TOOLKIT,
                True,
                CudaDecision(
                    True,
                    "an NVIDIA GPU is present, default architectures; nvcc 12.0 is too old for 100+PTX",
                    ("80", "90a"),
                ),
            ),
        ],
    )
    def test_cases(
        self, environment: dict[str, str], toolkit: Toolkit | None, gpu: bool, expected: CudaDecision
    ) -> None:
        assert decide.decide_cuda(environment, toolkit, gpu) == expected

    def test_nvcc_alone_does_not_build_and_says_how_to(self) -> None:
        decision = decide.decide_cuda({}, TOOLKIT, gpu=False)
        assert not decision.build
        assert "nvcc 13.0 is here, but there is no GPU and no architecture list" in decision.reason
        assert "ARGUS_CUDA=1" in decision.reason

    @pytest.mark.parametrize(
        ("environment", "toolkit", "message"),
        [
            ({"ARGUS_CUDA": "1"}, None, "ARGUS_CUDA=1 asks for the CUDA library, but no working nvcc is in PATH"),
            ({"ARGUS_CUDA": "1", "CUDA_HOME": "/x"}, None, "no working nvcc is in CUDA_HOME"),
            ({"ARGUS_CUDA": "yes"}, TOOLKIT, "ARGUS_CUDA is 'yes', expected 0 or 1"),
            ({"ARGUS_CUDA_ARCHS": "sm_80"}, TOOLKIT, "ARGUS_CUDA_ARCHS names the architecture 'sm_80'"),
            ({"TORCH_CUDA_ARCH_LIST": "Ampere"}, TOOLKIT, "TORCH_CUDA_ARCH_LIST names the architecture 'Ampere'"),
            ({"ARGUS_CUDA_ARCHS": "80;100"}, OLD_TOOLKIT, "ARGUS_CUDA_ARCHS asks for 100, which nvcc 12.0"),
        ],
    )
    def test_errors(self, environment: dict[str, str], toolkit: Toolkit | None, message: str) -> None:
        with pytest.raises(BuildError, match=re.escape(message)):
            decide.decide_cuda(environment, toolkit, gpu=False)

    def test_architectures_are_read_in_both_spellings(self) -> None:
        assert decide.parse_architectures("80;90a;100+PTX,80", "X") == ("80", "90a", "100+PTX")
        assert decide.parse_architectures(" 8.0 9.0a 10.0+PTX 12.0f ", "X") == ("80", "90a", "100+PTX", "120f")


class TestTools:
    def fake_toolkit(self, folder: Path) -> Path:
        """A directory that looks like a CUDA toolkit to `find_toolkit`."""
        nvcc = folder / "bin" / "nvcc"
        nvcc.parent.mkdir(parents=True)
        nvcc.write_text(
            '#!/bin/sh\ncase "$1" in\n'
            f"--dryrun) echo '#$ TOP={folder}/bin/..' >&2;;\n"
            "--version) echo 'Cuda compilation tools, release 12.8, V12.8.61';;\n"
            "--list-gpu-code) printf 'sm_80\\nsm_90\\nsm_100\\n';;\nesac\n"
        )
        nvcc.chmod(0o755)
        return nvcc

    def test_no_toolkit(self, tmp_path: Path) -> None:
        assert decide.find_toolkit({"CUDA_HOME": str(tmp_path)}) is None

    def test_cuda_home(self, tmp_path: Path) -> None:
        nvcc = self.fake_toolkit(tmp_path / "cuda")
        found = decide.find_toolkit({"CUDA_HOME": str(tmp_path / "cuda"), **NOTHING_ON_PATH})
        assert found is not None
        assert (found.nvcc, found.root, found.version) == (nvcc, tmp_path / "cuda", "12.8")
        assert found.architectures == {"80", "90", "90a", "100", "100a"}

    @pytest.mark.parametrize("kind", ["wrapper", "link"])
    def test_nvcc_on_path_is_followed_to_its_toolkit(self, tmp_path: Path, kind: str) -> None:
        nvcc = self.fake_toolkit(tmp_path / "cuda")
        (tmp_path / "bin").mkdir()
        on_path = tmp_path / "bin" / "nvcc"
        if kind == "link":
            on_path.symlink_to(nvcc)
        else:
            on_path.write_text(f'#!/bin/sh\nexec {nvcc} "$@"\n')
            on_path.chmod(0o755)
        found = decide.find_toolkit({"PATH": str(tmp_path / "bin")})
        assert found is not None
        assert (found.nvcc, found.root) == (nvcc, tmp_path / "cuda")

    def test_a_broken_nvcc_is_no_toolkit(self, tmp_path: Path) -> None:
        nvcc = self.fake_toolkit(tmp_path)
        nvcc.write_text("#!/bin/sh\nexit 1\n")
        assert decide.find_toolkit({"CUDA_HOME": str(tmp_path)}) is None

    def test_no_compiler_says_what_to_do(self) -> None:
        with pytest.raises(BuildError, match=r"no C\+\+ compiler found .*ARGUS_NATIVE=0"):
            decide.find_compiler(NOTHING_ON_PATH)

    def test_a_compiler_without_cpp20_says_so(self, tmp_path: Path) -> None:
        old = tmp_path / "oldc++"
        old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "old c++ 4.8" && exit 0\nexit 1\n')
        old.chmod(0o755)
        with pytest.raises(BuildError, match=r"oldc\+\+ \(old c\+\+ 4.8\) does not accept -std=c\+\+20"):
            decide.find_compiler({"CXX": str(old), "PATH": "/bin:/usr/bin"})

    def test_a_launcher_is_not_the_compiler(self) -> None:
        assert decide.Compiler("/usr/bin/ccache clang++", "").program == "clang++"
        assert decide.Compiler("g++ -m64", "").program == "g++"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"CXX": "/nonexistent/c++"}, "error: no C++ compiler found (looked for /nonexistent/c++)"),
        ({"ARGUS_CUDA": "1", "CUDA_HOME": "/nonexistent"}, "error: ARGUS_CUDA=1 asks for the CUDA library"),
        ({"ARGUS_CUDA": "2"}, "error: ARGUS_CUDA is '2', expected 0 or 1"),
    ],
)
def test_setup_fails_with_one_sentence(tmp_path: Path, changed: dict[str, str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path)],
        cwd=REPOSITORY,
        env={**os.environ, **changed},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


class TestCompiling:
    @pytest.fixture
    def project(self, tmp_path: Path) -> Path:
        """A source tree with one library of one source and one header."""
        source = tmp_path / "tree of sources" / "csrc"
        source.mkdir(parents=True)
        (source / "answer.h").write_text("constexpr int kAnswer = 41;\n")
        (source / "answer.cpp").write_text('#include "answer.h"\nextern "C" int answer() { return kAnswer; }\n')
        return source.parent

    def build(self, project: Path) -> Path:
        flags = ("-std=c++20", "-fPIC", "-Icsrc")
        library = native.Library("cpu", "libanswer.so", ("csrc/answer.cpp",), flags)
        compiler = decide.find_compiler(os.environ)
        return native.build([library], project, project / "build" / "native", compiler, None)["cpu"]

    def answer(self, library: Path) -> int:
        program = "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).answer())"
        return int(subprocess.check_output([sys.executable, "-S", "-c", program, str(library)]))

    def test_nothing_changed_nothing_compiled(self, project: Path) -> None:
        library = self.build(project)
        stamp = library.stat().st_mtime_ns
        began = time.monotonic()
        assert self.build(project).stat().st_mtime_ns == stamp
        assert time.monotonic() - began < 2

    def test_a_changed_header_recompiles(self, project: Path) -> None:
        assert self.answer(self.build(project)) == 41
        (project / "csrc" / "answer.h").write_text("constexpr int kAnswer = 42;\n")
        assert self.answer(self.build(project)) == 42

    def test_an_error_in_the_source_stops_the_build(self, project: Path) -> None:
        (project / "csrc" / "answer.cpp").write_text("this is not C++\n")
        with pytest.raises(BuildError, match="compiling the native libraries failed"):
            self.build(project)

    def test_two_builds_at_once(self, project: Path) -> None:
        with ThreadPoolExecutor(2) as pool:
            libraries = list(pool.map(self.build, [project, project]))
        assert [self.answer(library) for library in libraries] == [41, 41]


def test_every_source_belongs_to_a_library() -> None:
    cpu, cuda = native.op_sources(REPOSITORY)
    host = native.host_library(REPOSITORY).sources
    sources = {
        str(path.relative_to(REPOSITORY))
        for path in (REPOSITORY / "csrc").rglob("*.c*")
        if path.suffix in (".cpp", ".cu") and "simt" not in path.parts
    }
    assert sources == set(cpu) | set(cuda) | set(host)


def build_python(folder: Path, *arguments: str, **environment: str) -> str:
    """Runs `python -m build` without isolation in `folder`; its output."""
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check", "-o", "dist", *arguments],
        cwd=folder,
        env={**os.environ, "ARGUS_CUDA": "0", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def unpacked_sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of a copy of this tree, unpacked."""
    pytest.importorskip("build")
    copy = copy_of_tree(tmp_path_factory.mktemp("tree") / "tree")
    build_python(copy, "--sdist")
    (archive,) = (copy / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(copy.parent / "unpacked", filter="data")
    (root,) = (copy.parent / "unpacked").iterdir()
    return root


def take_over_objects(tree: Path) -> bool:
    """Copies the objects of this tree's build into that of a copy of it, unless some are out of date."""
    with compiled_here() as objects:
        if objects is not None:
            shutil.copytree(objects, tree / "build" / "native")
        return objects is not None


@pytest.mark.slow
class TestDistribution:
    def test_the_sdist_has_what_a_build_needs(self, unpacked_sdist: Path) -> None:
        for folder in ("csrc", "build_support"):
            here = {p.relative_to(REPOSITORY) for p in (REPOSITORY / folder).rglob("*") if p.is_file()}
            here = {path for path in here if "__pycache__" not in path.parts}
            there = {p.relative_to(unpacked_sdist) for p in (unpacked_sdist / folder).rglob("*") if p.is_file()}
            assert here == there
        for name in ("setup.py", "pyproject.toml", "constraints.txt", "argus_kernels/core/native.py"):
            assert (unpacked_sdist / name).exists()
        assert not list(unpacked_sdist.rglob("*.so"))
        assert not list(unpacked_sdist.rglob("_build_info.json"))

    def test_a_wheel_from_the_sdist_runs_in_an_empty_environment(self, unpacked_sdist: Path, tmp_path: Path) -> None:
        # What is tested is the packaging: unoptimised code compiles three times as fast, and what this tree's build has
        # compiled of the same sources is taken over. ninja still sees a header that is missing, and compiles.
        taken_over = take_over_objects(unpacked_sdist)
        printed = build_python(unpacked_sdist, "--wheel", **({} if taken_over else {"CXXFLAGS": "-O0"}))
        assert "argus-kernels: building argus_kernels._ops_cpu" in printed
        assert "argus-kernels: not building argus_kernels._ops_cuda (ARGUS_CUDA=0)" in printed
        (wheel,) = (unpacked_sdist / "dist").glob("*.whl")
        version = f"cp{sys.version_info.major}{sys.version_info.minor}"
        assert re.search(rf"-{version}-{version}-(?!any)\w+\.whl$", wheel.name)
        with zipfile.ZipFile(wheel) as opened:
            for name in opened.namelist():
                if name.endswith(".so"):
                    content = opened.read(name)
                    assert not [place for place in (unpacked_sdist, REPOSITORY) if str(place).encode() in content]
        python = self.install(wheel, tmp_path)
        program = (
            "import numpy as np, torch, argus_kernels\n"
            "from argus_kernels import host\n"
            "from argus_kernels.core import native\n"
            "assert native.why_not('cpu') is None, native.why_not('cpu')\n"
            "assert native.why_not('cuda').endswith('was not built: ARGUS_CUDA=0'), native.why_not('cuda')\n"
            "table, state = torch.ones(3, 2), torch.zeros(3)\n"
            "torch.ops.argus_native.rowwise_adagrad_(\n"
            "    table, state, torch.tensor([1]), torch.tensor([[3.0, 4.0]]), 1.0, 0.0, 0.0)\n"
            "assert state.tolist() == [0.0, 12.5, 0.0], state\n"
            "assert host.backend() == 'compiled'\n"
            "assert host.hash_ids(np.array([-1]), 2, 10).tolist() == [[-1], [-1]]\n"
            "print(argus_kernels.__file__)\n"
        )
        done = subprocess.run([python, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(str(tmp_path / "environment"))

    def test_without_native_libraries_the_wheel_is_pure_and_says_why(
        self, unpacked_sdist: Path, tmp_path: Path
    ) -> None:
        build_python(unpacked_sdist, "--wheel", ARGUS_NATIVE="0", CXX="/nonexistent")
        (wheel,) = (unpacked_sdist / "dist").glob("*-py3-none-any.whl")
        with zipfile.ZipFile(wheel) as opened:
            assert not [name for name in opened.namelist() if name.endswith(".so")]
            record = json.loads(opened.read("argus_kernels/_build_info.json"))
        assert {key: entry["reason"] for key, entry in record["libraries"].items()} == dict.fromkeys(
            ("cpu", "cuda", "host"), "ARGUS_NATIVE=0"
        )
        python = self.install(wheel, tmp_path)
        program = (
            "import numpy as np\n"
            "from argus_kernels import host\n"
            "from argus_kernels.core import native\n"
            "assert native.why_not('cpu') == '_ops_cpu.so was not built: ARGUS_NATIVE=0'\n"
            "assert host.backend() == 'numpy'\n"
            "assert host.hash_ids(np.array([7]), 1, 1).tolist() == [[0]]\n"
        )
        done = subprocess.run([python, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def install(self, wheel: Path, folder: Path) -> str:
        """Installs the wheel into a new environment that otherwise only sees this one's torch and numpy."""
        subprocess.run([sys.executable, "-m", "venv", str(folder / "environment")], check=True)
        python = folder / "environment" / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
        (packages,) = (folder / "environment" / "lib").glob("python*/site-packages")
        # A .pth file adds the directory but not the editable installs in it.
        (packages / "torch_and_numpy.pth").write_text(str(native.package_directory("torch").parent))
        return str(python)


class TestLoading:
    def in_fresh_process(self, program: str, **environment: str) -> str:
        done = warm.python(["-c", "from argus_kernels.core import native\n" + program], {**os.environ, **environment})
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def copy_of_package(self, folder: Path, record: dict | None, **files: bytes) -> dict[str, str]:
        """An argus_kernels with only core/native.py in it; the environment that finds it first."""
        core = folder / "argus_kernels" / "core"
        core.mkdir(parents=True)
        (folder / "argus_kernels" / "__init__.py").write_text("")
        (core / "__init__.py").write_text("")
        shutil.copy2(REPOSITORY / "argus_kernels" / "core" / "native.py", core)
        if record is not None:
            (folder / "argus_kernels" / "_build_info.json").write_text(json.dumps(record))
        for name, content in files.items():
            (folder / "argus_kernels" / f"{name}.so").write_bytes(content)
        return {"PYTHONPATH": str(folder)}

    def reasons(self, folder: Path, environment: dict[str, str]) -> list[str]:
        program = "import json; print(json.dumps([native.why_not(name) for name in native.LIBRARIES]))"
        done = warm.python(
            ["-c", "from argus_kernels.core import native\n" + program], {**os.environ, **environment}, folder
        )
        assert done.returncode == 0, done.stderr
        found: list[str] = json.loads(done.stdout)
        return found

    def test_importing_loads_nothing(self) -> None:
        assert self.in_fresh_process("import torch; print(len(torch.ops.loaded_libraries))") == "0"

    @pytest.mark.parametrize(
        ("setting", "expected"), [("1", "cpu cuda host"), ("cpu, host", "cpu host"), ("0", ""), ("", "")]
    )
    def test_switched_off_by_name(self, monkeypatch: pytest.MonkeyPatch, setting: str, expected: str) -> None:
        from argus_kernels.core import native as loader

        monkeypatch.setenv("ARGUS_NATIVE_DISABLE", setting)
        off = [name for name in loader.LIBRARIES if "ARGUS_NATIVE_DISABLE" in (loader.why_not(name) or "")]
        assert " ".join(off) == expected

    def test_an_unknown_name_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from argus_kernels.core import native as loader

        monkeypatch.setenv("ARGUS_NATIVE_DISABLE", "gpu")
        with pytest.raises(
            ValueError, match="ARGUS_NATIVE_DISABLE names gpu, expected 1, or a list of cpu, cuda, host"
        ):
            loader.why_not("cpu")
        with pytest.raises(ValueError, match="library is 'gpu', expected one of cpu, cuda, host"):
            loader.why_not("gpu")  # type: ignore[arg-type]

    def test_require_raises_the_reason(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from argus_kernels.core import native as loader

        monkeypatch.setenv("ARGUS_NATIVE_DISABLE", "cpu")
        assert not loader.load("cpu")
        with pytest.raises(RuntimeError, match=r"_ops_cpu.so is switched off by ARGUS_NATIVE_DISABLE"):
            loader.require("cpu")

    def test_never_built(self, tmp_path: Path) -> None:
        reasons = self.reasons(tmp_path, self.copy_of_package(tmp_path, None))
        assert all("was not built, and there is no record of a build" in reason for reason in reasons)

    def test_the_reason_of_the_build_is_given(self, tmp_path: Path) -> None:
        record = {"libraries": {key: {"built": False, "reason": f"because {key}"} for key in ("cpu", "cuda", "host")}}
        reasons = self.reasons(tmp_path, self.copy_of_package(tmp_path, record))
        for key, reason in zip(("cpu", "cuda", "host"), reasons, strict=True):
            assert reason.endswith(f"was not built: because {key}")

    def test_built_but_gone(self, tmp_path: Path) -> None:
        record = {"python": "3.12.1", "libraries": {"cpu": {"built": True, "reason": "g++"}}}
        reasons = self.reasons(tmp_path, self.copy_of_package(tmp_path, record))
        assert "_ops_cpu.so was built, for Python 3.12.1, but is not in" in reasons[0]

    def test_a_library_that_cannot_be_loaded(self, tmp_path: Path) -> None:
        environment = self.copy_of_package(tmp_path, None, _ops_cpu=b"not a library")
        assert re.search(
            r"^_ops_cpu\.so could not be loaded: .*(invalid ELF|file too short)", self.reasons(tmp_path, environment)[0]
        )

    def test_a_module_of_another_python(self, tmp_path: Path) -> None:
        environment = self.copy_of_package(tmp_path, None)
        (tmp_path / "argus_kernels" / "_host.cpython-38-x86_64-linux-gnu.so").write_bytes(b"")
        assert (
            "only _host.cpython-38-x86_64-linux-gnu.so: it was built for another Python"
            in self.reasons(tmp_path, environment)[2]
        )

    def test_a_python_that_the_wheel_has_no_host_for(self, tmp_path: Path) -> None:
        this = f"{sys.version_info.major}.{sys.version_info.minor}"
        record = {"libraries": {"host": {"built": True, "reason": "g++", "pythons": ["3.8", "3.9"]}}}
        (reason,) = self.reasons(tmp_path, self.copy_of_package(tmp_path, record))[2:]
        assert reason.startswith("_host.cpython-3") and reason.endswith(
            f".so is not in this package, which has it for Python 3.8, 3.9; build the package on Python {this}"
        )

    def test_cuda_without_a_cuda_torch(self, tmp_path: Path) -> None:
        import torch

        if torch.version.cuda is not None:
            pytest.skip("this torch has CUDA")
        environment = self.copy_of_package(tmp_path, None, _ops_cuda=b"")
        assert self.reasons(tmp_path, environment)[1] == (
            f"_ops_cuda.so is not loaded: torch {torch.__version__} is not a CUDA build"
        )
