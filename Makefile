# `make demo` and `make test` do all set-up themselves, on a machine with Python 3.11 or later.

VENV := .venv
SOURCES := qctl tests
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --no-input --quiet --quiet
LOCK := ../.venv-lock/bin/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe --no-emit-index-url \
	--no-emit-find-links --no-emit-trusted-host --no-emit-options

MAKEFLAGS += --no-print-directory --no-builtin-rules
.DEFAULT_GOAL := help

.PHONY: help
help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

.PHONY: demo
demo: $(VENV)/.base rabbitmq ## Set up and run the two-server demo on a private broker
	@$(VENV)/bin/qctl demo

.PHONY: test
test: lint rabbitmq compiler tmux ## Set up and run every check and test
	@echo "running the tests" >&2
	@$(VENV)/bin/python -m pytest --quiet --numprocesses 3 --dist worksteal

.PHONY: unit
unit: $(VENV)/.test ## Run the tests that need no broker
	@$(VENV)/bin/python -m pytest --quiet tests/unit

.PHONY: lint
lint: $(VENV)/.test ## Run ruff and mypy
	@echo "checking with ruff and mypy" >&2
	@$(VENV)/bin/ruff check --quiet $(SOURCES)
	@$(VENV)/bin/ruff format --check --quiet $(SOURCES) || { echo "not formatted; run: make format" >&2; exit 1; }
	@$(VENV)/bin/mypy --no-error-summary

.PHONY: format
format: $(VENV)/.test ## Format the code
	@$(VENV)/bin/ruff check --quiet --fix $(SOURCES) ; $(VENV)/bin/ruff format --quiet $(SOURCES)

.PHONY: bench
bench: $(VENV)/.test rabbitmq ## Run the benchmarks, one after the other
	@for bench in $(basename $(notdir $(wildcard tests/bench/*.py))); do \
		echo "== $$bench"; $(VENV)/bin/python -m "tests.bench.$$bench" || exit 1; \
	done

.PHONY: faults
faults: $(VENV)/.test rabbitmq compiler ## Run the fault matrix (ROWS="F06 F08", BROKERS="local container") and write docs/faults.md
	@$(VENV)/bin/python -m tests.faults --rows "$(ROWS)" $(if $(BROKERS),--brokers "$(BROKERS)")

.PHONY: screenshots
screenshots: $(VENV)/.base rabbitmq ## Run the demo and take a picture of every view of the console for docs/
	@$(VENV)/bin/python -m tests.tui.screenshots

.PHONY: lock
lock: ## Renew requirements/*.txt from pyproject.toml and requirements/*.in
	@scripts/make-venv .venv-lock
	@.venv-lock/bin/python -m pip --disable-pip-version-check --quiet --quiet install --require-hashes -r requirements/lock.txt
	cd requirements && export CUSTOM_COMPILE_COMMAND='make lock' \
	&& $(LOCK) --upgrade --output-file base.txt ../pyproject.toml \
	&& $(LOCK) --upgrade --extra test --constraint base.txt --output-file test.txt ../pyproject.toml \
	&& $(LOCK) --upgrade --output-file build.txt build.in \
	&& $(LOCK) --upgrade --output-file lock.txt lock.in

.PHONY: clean
clean: ## Remove what was made here, but no private broker
	@rm -rf $(VENV) .venv-lock build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: rabbitmq
rabbitmq:
	@scripts/ensure-rabbitmq

.PHONY: compiler
compiler:
	@scripts/ensure-compiler

.PHONY: tmux
tmux:
	@scripts/ensure-tmux

# What it takes to run qctl, and on top of it what it takes to test it.
$(VENV)/.base: requirements/base.txt requirements/build.txt pyproject.toml
	@scripts/make-venv $(VENV)
	@echo "installing qctl's locked dependencies" >&2
	@$(PIP) install --require-hashes -r requirements/build.txt -r requirements/base.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.base requirements/test.txt
	@echo "installing the locked tools for tests" >&2
	@$(PIP) install --require-hashes -r requirements/test.txt
	@touch $@
