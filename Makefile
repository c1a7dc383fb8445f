# `make demo` and `make test` work on a machine that has Python 3.10 or newer and nothing else.
# Another interpreter: `make setup PYTHON=python3.12`. Arguments for pytest: `make test ARGS="-k parser"`.

PYTHON ?= python3
BIN := .venv/bin
SET_UP := .venv/.set-up
BENCH := .venv/.bench
INSTALLED := build/installed
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench bench-quick wheel-test

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 22

setup: $(SET_UP) ## a development environment in .venv, once (minutes: torch is large)

# pip installs over what is there, so an environment that was cut off half-way is completed.
$(SET_UP): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "crate-dsl needs Python 3.10 or newer; name one with: make setup PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade -c constraints.txt pip setuptools
	$(BIN)/python -m pip install --no-build-isolation -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -q crate_dsl compiler grammars specs # as pip does for what is not editable
	@touch $@

demo: setup ## a network from its spec to a proved ONNX file, on this machine
	$(BIN)/crate-dsl demo

test: setup ## the tests, on two processes of one thread each
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 $(ARGS)

# Type checkers and import-linter do not follow setup.py's mapping of the folders, so they read an installed copy.
check: setup ## lint, format, types, import contracts, and every spec
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target $(INSTALLED) .
	cd $(INSTALLED) && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p crate_dsl
	cd $(INSTALLED) && ../../$(BIN)/lint-imports --config ../../pyproject.toml --cache-dir ../../.import_linter_cache
	for spec in specs/*.crate; do $(BIN)/crate-dsl check "$$spec" || exit 1; done

bench: $(BENCH) ## how fast it is: every benchmark, the numbers, the chart, the tables (a quarter of an hour on two cores)
	$(BIN)/python -m benchmarks.run $(ARGS)

# What is compared with: torch.onnx.export's own packages, and OpenVINO (60 MB).
$(BENCH): $(SET_UP)
	$(BIN)/python -m pip install --no-build-isolation -c constraints.txt -e '.[bench]'
	@touch $@

bench-quick: setup ## every benchmark once, at the smallest sizes: shows that they run, and writes nothing
	$(BIN)/python -m benchmarks.run --quick

wheel-test: setup ## the wheel, installed alone: complete, and at work far from the checkout
	$(BIN)/python .ci/wheel_test.py
