# Everything runs in its own virtual environment, .venv; nothing is installed elsewhere.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test slow lint types contracts ci

## The demonstration: a federation of four clients on this machine, in about a minute.
demo: $(VENV)/.demo
	$(BIN)/florist simulate

## The quick tests.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n auto --maxprocesses=4 -m "not slow"

## The long tests.
slow: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/pyright --pythonpath $(BIN)/python

contracts: $(VENV)/.dev
	$(BIN)/lint-imports

## What CI runs.
ci:
	bash .ci/run

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[train]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@ $(VENV)/.demo
