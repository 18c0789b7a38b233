# Every target sets up .venv by itself: `make demo` on a fresh machine is enough.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUT ?= demo_out
BENCH_OUT ?= runs/bench.jsonl
READY := $(VENV)/.ready
NATIVE_SOURCES := $(wildcard csrc/*/* csrc/*/*/* csrc/*/*/*/*) $(wildcard build_support/*.py)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all bench lint format docs wheel wheels test-wheel doctor clean

help:  ## What there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## Set up .venv: torch, the compiled package, what the model and the tests need

$(READY): pyproject.toml setup.py constraints.txt tools/setup.sh $(NATIVE_SOURCES)
	@PYTHON="$(PYTHON)" VENV="$(VENV)" bash tools/setup.sh
	@touch $@

demo: $(READY)  ## Watch ARGUS learn a synthetic music service and recommend (one to two minutes on two cores, after the set-up)
	$(BIN)/argus demo --out $(DEMO_OUT)

test: $(READY)  ## Every op, backend and contract, the model and the commands; leaves out what pyproject.toml marks slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal -m "not sanitizer and not slow" \
	  --hypothesis-profile=quick $(PYTEST_ARGS)

test-all: $(READY)  ## All tests: those marked slow too, and more than .ci/run does: further samples in Triton's interpreter, the native layer under sanitizers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal $(PYTEST_ARGS)

bench: $(READY)  ## Every op, backend and peer that can be installed here, and a page of them (ten minutes on two cores)
	@bash tools/peers.sh $(BIN)/python
	$(BIN)/python -m benchmarks run --suite quick --time-budget 570 --json $(BENCH_OUT)
	$(BIN)/python -m benchmarks report $(BENCH_OUT) --out $(basename $(BENCH_OUT)).html --table $(basename $(BENCH_OUT)).md

lint: $(READY)  ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy argus_kernels python_model benchmarks tests
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh')

format: $(READY)  ## Lay out Python and C++ as lint wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh')

docs: $(READY)  ## The documentation site with its notebooks, in site/; a warning stops it
	OMP_NUM_THREADS=1 NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

wheel: $(READY)  ## Source distribution and wheel for this Python, in dist/
	$(BIN)/python -m build --no-isolation

wheels: $(READY)  ## The files of a release, in dist/: sdist, CPU and CUDA wheels for every Python (WHEEL_ARGS=--cpu-only)
	$(BIN)/python -m build_support.wheels $(WHEEL_ARGS)

test-wheel: $(READY)  ## A wheel for this Python alone, installed and tested in an environment without a compiler
	rm -rf build/tested && $(BIN)/python -m build_support.wheels --cpu-only --python $(BIN)/python --out build/tested
	tools/test_wheel.sh build/tested/*.whl $(BIN)/python \
	  $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')

doctor: $(READY)  ## What is installed, and which backend serves which op here
	$(BIN)/python -m argus_kernels.doctor

clean:  ## Remove what was built; .venv stays
	rm -rf build dist *.egg-info argus_kernels/*.so argus_kernels/_build_info.json $(DEMO_OUT)
