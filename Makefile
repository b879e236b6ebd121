# Everything happens in .venv; `make demo` and `make test` install it first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: .venv/installed
	$(BIN)/udaseg demo --out runs/demo

test: .venv/installed lint
	$(BIN)/python -m pytest -m "not full"

test-all: .venv/installed lint
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info
