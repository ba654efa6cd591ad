# make demo | make test | make lint | make docs: every target sets up .venv first, once.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: all demo test lint docs clean
all: .venv/installed

# Exact versions by name (constraints.txt); the package itself declares honest ranges.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

demo: .venv/installed
	$(BIN)/segshift demo

test: .venv/installed
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder  # a process a core, each on one thread

lint: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[lint]'
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build --quiet
	@echo "open build/site/index.html"

clean:
	rm -rf .venv
