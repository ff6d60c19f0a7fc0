# Two commands do everything: `make demo` and `make test`.  `make help` lists the others.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# One process per core; each computes with one thread.
JOBS ?= auto
OUTPUT ?= demo-output

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-quick test lint format types bench docs wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

# ---- set-up: each stamp is renewed when a dependency changes, so a second call is instant ----

$(VENV)/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "spherediff needs Python 3.11 or newer, but '$(PYTHON)' is" \
	    "$$($(PYTHON) --version 2>&1). Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot create virtual environments: its venv or ensurepip module is" \
	    "missing. On Debian and Ubuntu, install the package python3-venv."; \
	  exit 1; }
	@echo "Setting up $(VENV): the first time this downloads PyTorch and takes some minutes."
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.stamp-%: $(VENV)/.stamp
	$(PIP) install -c constraints.txt -e ".[$*]"
	@touch $@

setup: $(VENV)/.stamp-dev ## create .venv with everything a developer needs

# ---- what people want ----

demo: $(VENV)/.stamp ## train on the bundled winds and draw new ones (about 5 minutes)
	$(BIN)/spherediff demo --output $(OUTPUT)

demo-quick: $(VENV)/.stamp ## the same in less than a minute, to see that it runs
	$(BIN)/spherediff demo --quick --output $(OUTPUT)-quick

test: $(VENV)/.stamp-dev ## run the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8 $(TESTFLAGS)

lint: $(VENV)/.stamp-dev ## check format and style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(VENV)/.stamp-dev ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(VENV)/.stamp-dev ## check the types
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.stamp-bench ## measure speed against healpy and torch-harmonics
	@set -e; for script in tests/benchmarks/bench_*.py; do \
	  echo "== $$script"; $(BIN)/python "$$script"; done

docs: $(VENV)/.stamp-docs ## build the documentation into docs/_build/html
	rm -rf docs/generated
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

wheel: $(VENV)/.stamp ## build the wheel into dist and check what is in it
	rm -rf build dist
	$(PIP) wheel --no-deps --wheel-dir dist .
	$(BIN)/python .ci/check_wheel.py dist

clean: ## remove everything that make has made
	rm -rf $(VENV) build dist docs/_build docs/generated demo-output demo-output-quick *.egg-info \
	  .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
