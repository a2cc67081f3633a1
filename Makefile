# Everything a newcomer types. Needs only Python 3.11+ and make; every install goes into .venv, pinned and hashed.
PYTHON ?= python3
BIN := .venv/bin
FOR ?= 60s

.PHONY: demo test unit lint fmt lock bench clean help

help:            ## this list
	@grep -E '^[a-z]+: .*##|^[a-z]+:  *##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

demo: .venv/.run ## three simulated GPU pools, the gateway and real traffic, live in this terminal (FOR=60s)
	@$(BIN)/slo-gateway demo --for $(FOR)

test: .venv/.dev lint unit ## everything CI runs

unit: .venv/.dev ## the tests alone
	@$(BIN)/pytest -n 2 --dist loadfile

lint: .venv/.dev ## style, types, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "run: make fmt"; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports

fmt: .venv/.dev  ## format
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .

lock: .venv/.dev ## pin dependencies anew, with hashes and without download addresses
	@$(BIN)/pip install --quiet uv
	@$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group build -o requirements/run.txt >/dev/null
	@$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group dev -o requirements/dev.txt >/dev/null

bench: .venv/.dev ## what the gateway itself costs, beside nginx, in one run
	@$(BIN)/python loadtests/overhead/run.py

clean:           ## remove what was installed
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; try: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "python3 -m venv failed; on Debian: apt-get install python3-venv"; exit 1; }
	@touch $@

.venv/.run: .venv/.python requirements/run.txt pyproject.toml
	@echo "Installing into .venv ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/run.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv/.dev: .venv/.python requirements/dev.txt pyproject.toml
	@echo "Installing what the tests need into .venv ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@ .venv/.run
