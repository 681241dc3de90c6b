# SPDX-License-Identifier: Apache-2.0
# Everything a fresh clone needs. It all happens in .venv inside the checkout.
#
#   make demo      meta-learning on real glyphs, the main job (examples/maml.py)
#   make test      the tests
#
# Another Python: make PYTHON=python3.12 ... (after `make clean`, since .venv belongs to one Python).

PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
# Extra arguments: make test ARGS='-k adam'
ARGS    ?=
WORKERS ?= 2

NATIVE := CMakeLists.txt $(wildcard third_party/*.cmake torchopt/_C/CMakeLists.txt) \
          $(wildcard torchopt/_C/src/* torchopt/_C/src/*/* torchopt/_C/include/*/*)

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format types doctest docs clean

help:  ## Say what can be made.
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## Create .venv and install the package into it, editable, with all extras.

# New and changed Python files need no new install; a change of what is listed here does.
$(STAMP): pyproject.toml constraints-dev.txt torchopt/version.py $(NATIVE)
	$(PYTHON) -c 'import sys; sys.exit("torchopt needs Python 3.10 or later; set PYTHON=..." if sys.version_info < (3, 10) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints-dev.txt
	@touch $@

demo: $(STAMP)  ## Run the main job: MAML on real glyphs.
	$(BIN)/python examples/maml.py $(ARGS)

test: $(STAMP)  ## Run the tests.
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

lint: $(STAMP)  ## Check style and formatting.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## Bring the files into the project's format.
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

types: $(STAMP)  ## Check the types of the package, strictly.
	$(BIN)/mypy

doctest: $(STAMP)  ## Run the examples in the docstrings.
	$(BIN)/python -m pytest --doctest-modules torchopt $(ARGS)

docs: $(STAMP)  ## Build the documentation into docs/_build/html; warnings are errors.
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d docs/_build/doctrees docs docs/_build/html

clean:  ## Remove what the other targets made, .venv included.
	rm -rf $(VENV) build dist docs/_build docs/api/generated .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
