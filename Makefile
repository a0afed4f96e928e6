# Everything runs in .venv, which make sets up and sets up anew when pyproject.toml
# changes: a machine needs no more than Python 3.11, git and make beforehand.
# Only the tests need programs of the system as well; tools/system-packages sees to it.

VENV := .venv
BIN := $(VENV)/bin

# The demo and the tests run blobstore and cryptsetup by name. Not exported: the
# virtual environment must not be made with a Python of its own.
WITH_PATH := PATH="$(CURDIR)/$(BIN):$$PATH:/usr/sbin:/sbin"

.DEFAULT_GOAL := help
.PHONY: help demo test lint system-packages clean
# One after the other, even with -j: the tests' closing line comes last.
.NOTPARALLEL:

help:
	@echo 'make demo     pack the example machine into an encrypted image and read it back'
	@echo 'make test     check the sources, then run every test'
	@echo '              PYTEST_ARGS="-k name" is handed on to pytest'
	@echo 'make lint     check the sources only'
	@echo 'make clean    remove what make made'
	@echo 'PYTHON=...    another Python for the virtual environment'

demo: $(VENV)/runtime
	$(WITH_PATH) tools/demo

test: system-packages $(VENV)/development lint
	$(WITH_PATH) $(BIN)/pytest --numprocesses auto $(PYTEST_ARGS)

lint: $(VENV)/development
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy examples/machine/generate.py
	$(BIN)/lint-imports --no-logo

system-packages:
	tools/system-packages

# From scratch, so that nothing stays which pyproject.toml no longer names. The
# file is the last thing made: a set-up that was interrupted starts again.
$(VENV)/runtime: pyproject.toml
	python=$$(tools/find-python) && "$$python" -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/development: $(VENV)/runtime
	$(BIN)/python -m pip install --quiet --group dev
	touch $@

clean:
	rm -rf $(VENV) demo build dist
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
