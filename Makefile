# One door. `make` alone lists what is behind it.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
VLLM_READY := .venv-vllm/.ready
SOURCES := $(wildcard lit_msrl data_modules experiments tests)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo ablation check test fmt lint type floors base preview tensorboard clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  \033[1m%-12s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## Make .venv with the pinned versions (PYTHON=python3.12 picks the interpreter)

# Again only when the dependencies change; a setup that was broken off starts over.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "lit_msrl needs Python 3.11 or newer, and '$(PYTHON)' is not: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	@touch $@

# A layer over .venv with a vLLM for CPUs, for tests/vllm; begins anew where it was broken off.
$(VLLM_READY): $(READY) constraints-vllm.txt tests/vllm/environment.py
	$(BIN)/python tests/vllm/environment.py .venv-vllm
	@touch $@

demo: setup  ## Train and evaluate the whole pipeline on a small built-in world, on a CPU
	$(BIN)/python experiments/pipeline.py

check: lint type floors  ## What every commit must pass, in under three minutes
	$(BIN)/python -m pytest -q -m "not slow"

test: lint type floors $(VLLM_READY)  ## Style, types, import floors and every test
	$(BIN)/python -m pytest -q
	.venv-vllm/bin/python -m pytest -q tests/vllm

fmt: setup  ## Format, and fix what can be fixed
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

lint: setup  ## Style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: setup  ## Static types
	$(BIN)/pyright

floors: setup  ## Imports go to lower floors only
	PYTHONPATH=. $(BIN)/lint-imports --no-logo

ablation: setup  ## The paper's ablations on the built-in world, three seeds; at most two hours
	$(BIN)/python experiments/ablation.py

base: setup  ## Make the small base model that the demo starts from
	$(BIN)/python experiments/make_base.py

preview: setup  ## Show samples of the built-in world
	$(BIN)/python -m data_modules.world preview

tensorboard: setup  ## Curves of all runs under outputs/
	$(BIN)/tensorboard --logdir outputs

clean:  ## Remove caches; .venv, .venv-vllm and outputs stay
	rm -rf .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist *.egg-info
	find $(SOURCES) -type d -name __pycache__ -prune -exec rm -rf {} +
