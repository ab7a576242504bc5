# Everything runs in its own virtual environment, .venv; nothing is installed elsewhere.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# What the edit loop asks most: the algebra, the rules, the files of adapters. No model is loaded from disk.
FAST := tests/linalg tests/aggregation tests/test_ranks.py tests/test_factors.py tests/test_seeding.py \
  tests/federation/test_rules.py tests/federation/test_admission.py tests/federation/test_local_init.py \
  tests/checkpoint/test_patterns.py tests/checkpoint/test_locating.py tests/checkpoint/test_reading.py \
  tests/checkpoint/test_writing.py

# Each of these parts of src/florist must be covered by the quick tests to so many per cent, lines and branches together.
COVERED := linalg ranks aggregation federation
COVERAGE := 95

.PHONY: demo fast test coverage slow soak lint types contracts docs docs-serve ci

## The demonstration: a federation of four clients on this machine, in about a minute.
demo: $(VENV)/.demo
	$(BIN)/florist simulate

## The core of the quick tests, for the edit loop.
fast: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n auto --maxprocesses=4 -m "not slow" $(FAST)

## The quick tests.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n auto --maxprocesses=4 -m "not slow" $(TESTFLAGS)

## The quick tests, and which lines and branches of the core they reach; to watch the rest would take minutes.
coverage:
	$(MAKE) test TESTFLAGS="--cov --cov-branch --cov-report=term:skip-covered"
	set -e; for part in $(COVERED:%='src/florist/%/*'); do \
	  $(BIN)/coverage report --include="$$part" --fail-under=$(COVERAGE) --format=total; \
	done

## The long tests. A file stays with one process: its tests share what takes long to set up. Three processes on two
## cores, since many tests wait for others.
slow: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n 3 --dist loadfile -m "slow and not soak"

## The longest tests, which CI leaves to a weekly run: many processes that are killed, 64 SuperNodes on one machine,
## whole tables in small, and variants of what CI runs.
soak: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m soak

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/pyright --pythonpath $(BIN)/python

contracts: $(VENV)/.dev
	$(BIN)/lint-imports

## The site in docs/_build/html, with its references made anew. A warning fails it.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -n -q -d docs/_build/doctrees docs docs/_build/html
	@echo "the site is in docs/_build/html; make docs-serve shows it on http://localhost:8000"

docs-serve: docs
	$(BIN)/python -m http.server 8000 --bind 127.0.0.1 --directory docs/_build/html

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

$(VENV)/.docs: $(VENV)/.dev
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev,docs]"
	touch $@
