# Everything a newcomer types. Needs only Python 3.11+ and make; every install goes into .venv, pinned and hashed.
PYTHON ?= python3
BIN := .venv/bin
FOR ?= 60s

.PHONY: demo test unit lint fmt lock compiled test-compiled bench clean help

help:            ## this list
	@grep -E '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

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
	@$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group compiled -o requirements/compiled.txt >/dev/null

compiled: .venv-compiled/.installed ## the gateway with its hot path in machine code, as .venv-compiled/bin/slo-gateway (two minutes, needs gcc)

test-compiled: .venv/.dev .venv-compiled/.installed ## the tests, with the compiled gateway
	@site=$$(.venv-compiled/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  PYTHONSAFEPATH=1 PYTHONPATH=$$site $(BIN)/pytest -n 2 --dist loadfile

bench: .venv/.dev ## what the gateway itself costs, beside nginx, in one run
	@$(BIN)/python loadtests/overhead/run.py

clean:           ## remove what was installed
	rm -rf .venv .venv-compiled build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

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

# Compiled from a copy: a compiled module beside its source would be used instead of it, and not follow when that is edited.
.venv-compiled/.installed: requirements/compiled.txt pyproject.toml $(shell find gateway config loadtests/suites -type f -not -name '*.pyc')
	@command -v cc >/dev/null || { echo "A C compiler is needed; on Debian: apt-get install gcc python3-dev"; exit 1; }
	@echo "Compiling into .venv-compiled ..."
	@$(PYTHON) -m venv .venv-compiled
	@.venv-compiled/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/compiled.txt
	@rm -rf build && mkdir -p build/source && cp -r --parents pyproject.toml README.md LICENSE NOTICE gateway config loadtests/suites build/source/
	@HATCH_BUILD_HOOK_ENABLE_MYPYC=1 .venv-compiled/bin/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w build build/source
	@.venv-compiled/bin/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall build/*.whl
	@touch $@
