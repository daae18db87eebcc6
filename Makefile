# Every target does its own set-up: a fresh clone needs nothing but Linux, Python 3.10+, g++ and make. Re-running repeats
# only what has changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
SOURCES := setup.py pyproject.toml $(wildcard csrc/*.* csrc/*/*)
PY_SOURCES := artkernels benchmarks examples tests setup.py
CPP_SOURCES := $(filter %.h %.cpp %.cu %.cuh,$(wildcard csrc/* csrc/*/* tests/*))
EMULATED := build/emulated
# Most tests keep one core busy. A process of them takes up to 4 GB.
TEST_PROCESSES ?= 2
PARALLEL := -n $(TEST_PROCESSES) --dist worksteal
# What runs a second time, through the CUDA kernels.
OP_TESTS := tests/test_conv_act.py tests/test_conv_backward.py tests/test_conv_norm_act.py \
  tests/test_conv_transpose.py tests/test_feature_statistics.py tests/test_gram.py tests/test_norm_act.py \
  tests/test_norm_act_modules.py tests/test_reparameterize_kl.py

.DEFAULT_GOAL := help
.PHONY: help demo test test-cuda bench modelled readme-tables lint format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) setuptools torch torchvision
	touch $@

# nvcc from pip, where the machine has none; without either, CPU kernels only.
$(VENV)/.nvcc: $(VENV)/.torch
	command -v nvcc > /dev/null || test -n "$$CUDA_HOME" || \
	  $(PIP) nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-crt nvidia-cuda-cccl nvidia-cuda-runtime || \
	  echo "artkernels: no nvcc here and none from pip: CPU kernels only"
	touch $@

$(VENV)/.built: $(VENV)/.nvcc $(SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

$(VENV)/.installed: $(VENV)/.built pyproject.toml
	$(PIP) --no-build-isolation -e '.[dev]'
	touch $@

# The package once more, its CUDA kernels linked to the emulator: CPU tensors go through the CUDA path.
.PHONY: emulated
emulated: $(VENV)/.installed
	ARTKERNELS_CUDA=emulate $(BIN)/python setup.py --quiet build --build-lib $(EMULATED)

demo: $(VENV)/.installed  ## draw, train, fine-tune, sample, stylise: out/demo/ (some seven minutes after the build)
	$(BIN)/python examples/demo.py

# Waiting threads give their core to others: where other processes run, too, tests are twice as fast.
test test-emulated test-cuda: export OMP_WAIT_POLICY := passive

test: $(VENV)/.installed  ## the CPU tests and the emulated CUDA tests that fit in CI
	$(BIN)/pytest tests -m "not slow and not alone" $(PARALLEL)
	$(BIN)/pytest tests -m "alone and not slow"
	@if $(BIN)/python -c 'import artkernels as a, sys; sys.exit(not a.build_info()["cuda"])'; \
	then $(MAKE) --no-print-directory test-emulated; \
	else echo "artkernels: neither a CUDA toolkit nor nvcc from pip: the CUDA tests were not run"; fi

.PHONY: test-emulated
test-emulated: emulated
	PYTHONPATH=$(EMULATED) $(BIN)/pytest $(OP_TESTS) -m "not slow and not cpu_only" --emulator-seeds 0 $(PARALLEL)

test-cuda: emulated  ## all emulated CUDA tests: every check on, three schedules
	PYTHONPATH=$(EMULATED) $(BIN)/pytest $(OP_TESTS) -m "not cpu_only" --emulator-seeds 0,1,7 $(PARALLEL)
	$(BIN)/pytest tests/test_cuda_*.py tests/cuda_emulator/tests $(PARALLEL)

bench: $(VENV)/.installed  ## ours against stock PyTorch and inference engines: out/bench/report.html
	$(BIN)/artkernels bench --report out/bench

modelled: $(VENV)/.installed  ## what the CUDA kernels move and compute, counted by the emulator
	$(BIN)/python -m benchmarks.modelled

readme-tables: $(VENV)/.installed  ## the README's tables, from benchmarks/results/
	$(BIN)/python benchmarks/readme_tables.py

lint: $(VENV)/.installed  ## ruff, mypy, clang-format
	$(BIN)/ruff check $(PY_SOURCES)
	$(BIN)/ruff format --check $(PY_SOURCES)
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP_SOURCES)

format: $(VENV)/.installed  ## rewrite the sources as lint wants them
	$(BIN)/ruff check --fix $(PY_SOURCES)
	$(BIN)/ruff format $(PY_SOURCES)
	$(BIN)/clang-format -i $(CPP_SOURCES)

clean:  ## remove what was built; .venv stays
	rm -rf build out artkernels/*.so artkernels/_build_info.py *.egg-info $(VENV)/.built
