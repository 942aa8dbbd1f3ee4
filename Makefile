.DEFAULT_GOAL := help
.PHONY: help demo test check fix test-gpu fuzz sweep clean

PYTHON ?= python3
BIN := .venv/bin
COMMA := ,
GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)
CONSTRAINTS := $(if $(GPU),,-c constraints.txt)
SOURCES := runtime bcg_cli tests benchmarks examples

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/installed ## install into .venv and capture the default model
	$(BIN)/bcg capture

test: .venv/installed-dev ## install into .venv and run the tests
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal $(ARGS)

check: .venv/installed-dev ## lint, format and types; writes nothing
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

fix: .venv/installed-dev ## apply the linter's fixes and the format
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

test-gpu: ## run the GPU tests with the machine's own python, torch and GPU
	PYTHONPATH=runtime:. $(PYTHON) -m pytest -m gpu $(ARGS)

fuzz: .venv/installed-dev ## compare ten thousand new random programs with eager
	$(BIN)/python -m pytest tests/fuzz --fuzz-examples 10000 --timeout 0 $(ARGS)

sweep: .venv/installed-dev ## capture and check a tiny model of every decoder-only architecture
	PYTHONPATH=runtime:. $(BIN)/python -m benchmarks.sweep $(ARGS)

clean: ## remove .venv and what tools left behind
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11" >&2; echo "hint: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.$(if $(GPU),[cudnn])'
	@touch $@

.venv/installed-dev: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[dev$(if $(GPU),$(COMMA)cudnn)]'
	@touch .venv/installed $@
