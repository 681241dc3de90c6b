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
.PHONY: help install demo test lint format types doctest sanitize cuda docs clean

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

# Those tests of the engine that reach every kernel; the others take many minutes without optimization. In an environment of its own that borrows all other packages. The sanitizers are preloaded, since Python
# itself is built without them; it leaks by design.
SANITIZED := build/sanitized
sanitize: $(STAMP)  ## Run tests that reach every kernel with AddressSanitizer and UndefinedBehaviorSanitizer.
	rm -rf $(SANITIZED) && $(BIN)/python -m venv $(SANITIZED)
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > "$$($(SANITIZED)/bin/python -c 'import site; print(site.getsitepackages()[0])')/borrowed.pth"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --prefix $(SANITIZED) --ignore-installed . \
	  -C build-dir=build/sanitized-objects -C cmake.build-type=RelWithDebInfo -C cmake.define.TORCHOPT_SANITIZE=ON
	cp -r tests pyproject.toml $(SANITIZED)
	cd $(SANITIZED) && LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0:alloc_dealloc_mismatch=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  bin/python -m pytest -q -p no:cacheprovider tests/_C/test_values.py tests/_C/test_runtime.py \
	  -k "not number_of_threads and not python_threads and not instruction_sets" $(ARGS)

# In a folder of its own, and loaded from there: a machine without a device, or without a driver, loads it all the same.
CUDA_MODULE := build/cuda
# Without optimization, and to PTX of one architecture: whether they are right is seen on machines with a device.
cuda: $(STAMP)  ## Compile the CUDA kernels, where nvcc is.
	rm -rf $(CUDA_MODULE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(CUDA_MODULE) . \
	  -C build-dir=build/cuda-objects -C cmake.define.TORCHOPT_CUDA=ON -C cmake.define.TORCHOPT_OPTIMIZATION=-O0 \
	  -C cmake.define.CMAKE_CUDA_ARCHITECTURES=90-virtual -C cmake.define.CMAKE_CUDA_FLAGS=-Xcicc=-O0
	$(BIN)/python -c 'import glob, torch; from importlib.machinery import ExtensionFileLoader as Loader; \
	  kernels = Loader("torchopt._C.kernels", *glob.glob("$(CUDA_MODULE)/torchopt/_C/kernels*.so")).load_module(); \
	  print(kernels.build_info(), "devices:", kernels.cuda_devices()); assert kernels.build_info()["cuda"]'

docs: $(STAMP)  ## Build the documentation into docs/_build/html; warnings are errors.
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d docs/_build/doctrees docs docs/_build/html

clean:  ## Remove what the other targets made, .venv included.
	rm -rf $(VENV) build dist docs/_build docs/api/generated .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
