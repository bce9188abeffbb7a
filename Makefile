# kindgene. Each target does all its own set-up: the first one run builds .venv, the others find it.
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete

# Libraries must not start a thread for every core in each of the two test processes.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
# Compiled is what is imported, and then: most of the packages' 18,000 files never are.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install --no-compile -c constraints.txt

.PHONY: help demo test lint bench clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-5s  %s\n", $$1, $$2 }' Makefile

demo: $(STAMP) ## run the whole method on real digits; leaves runs/demo/report.html
	$(BIN)/kindgene demo

test: $(STAMP) ## run the tests
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n 2 --dist worksteal

lint: $(STAMP) ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP) ## measure speed side by side, one thread; leaves runs/bench/performance.md
	$(ONE_THREAD) $(BIN)/kindgene bench

clean: ## remove the virtual environment and every cache, never runs/
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp comes last and the environment is begun anew without it, so an interrupted set-up is never built upon.
$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "kindgene needs Python 3.11 or newer, but '$(PYTHON)' says: $$("$(PYTHON)" --version 2>&1 | head -n 1)." \
			"Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("venv") and u.find_spec("ensurepip")))' || \
		{ echo "kindgene: '$(PYTHON)' has no venv module; install it (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	@echo "Setting up $(VENV) (once, some minutes) ..."
	@rm -f $(STAMP)
	@"$(PYTHON)" -m venv --clear $(VENV)
	@$(PIP) torch hatchling editables
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@$(BIN)/python -c 'from kindgene import *'
	@touch $(STAMP)
