# Everything happens in .venv; `make demo` and `make test` install it first.
PYTHON ?= python3
BIN := .venv/bin
# Tests run in two processes, a file in one of them.
TWO := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all lint docs clean

# pip compiles on one core, and what nobody imports; some files of torch are for newer Pythons and do not compile.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m compileall -qq -j 0 -x '/(tests?|rllib)/' .venv/lib udaseg pipelines || true
	touch $@

.venv/installed-full: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[full]"
	touch $@

demo: .venv/installed
	$(BIN)/udaseg demo --out runs/demo

test: .venv/installed lint
	$(BIN)/python -m pytest -m "not full" $(TWO)

test-all: .venv/installed-full lint
	$(BIN)/python -m pytest $(TWO)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/mypy

# The variable silences a word of Material's about MkDocs' next version.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/site/mkdocs.yml

clean:
	rm -rf .venv build dist *.egg-info
