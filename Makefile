# make run    set up .venv from the lock and run the whole default pipeline
# make test   the same set-up plus the test tools, and the tests
# make lint   format check, lint and types
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: run test lint format lock
.DELETE_ON_ERROR:

.venv/installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	touch $@

run: .venv/installed
	$(BIN)/kedro run

test: .venv/installed-dev
	$(BIN)/pytest

lint: .venv/installed-dev
	$(BIN)/ruff format --check src tests
	$(BIN)/ruff check src tests
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff format src tests
	$(BIN)/ruff check --fix src tests

# The lock pins torch without the label of the build that happens to be installed here, and names no package index.
PIP_COMPILE = $(BIN)/pip-compile --quiet --strip-extras --no-header --annotation-style=line \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host
lock: .venv/installed-dev
	$(PIP_COMPILE) --output-file requirements.lock pyproject.toml
	sed -i 's/^\(torch==[0-9.]*\)+[a-z0-9]*/\1/' requirements.lock
	$(PIP_COMPILE) --extra dev --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml
	sed -i 's/^\(torch==[0-9.]*\)+[a-z0-9]*/\1/' requirements-dev.lock
