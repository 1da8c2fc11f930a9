# Every target works on a fresh clone: the first one makes .venv and builds the package into it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS ?= test,examples,lint
BUILT := $(VENV)/.built
NATIVE := $(shell find csrc -name '*.cpp' -o -name '*.h')
CXX_FILES := $(shell find csrc tests -name '*.cpp' -o -name '*.h')

.PHONY: help demo test lint format bench conform docs sanitize nightly package clean

help:
	@echo "make demo      a real model's layer in MXFP4 on every backend"
	@echo "make test      the tests"
	@echo "make lint      ruff, mypy, clang-format"
	@echo "make conform   every op on every device against the reference, with reports in build/"
	@echo "make bench     benchmarks into benchmarks/results/"
	@echo "make docs      regenerate the generated pages and check the links of docs/"
	@echo "make sanitize  both virtual devices under AddressSanitizer and ThreadSanitizer"
	@echo "make nightly   everything that takes long: slow tests (sanitizers too), all conformance cases"
	@echo "make package   sdist and wheel into dist/"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(BUILT): pyproject.toml setup.py constraints.txt $(wildcard backends/*/pyproject.toml) $(NATIVE) | $(BIN)/python
	@echo "installing kernelforge and what it needs into $(VENV): a few minutes, once"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: $(BUILT)
	$(BIN)/kernelforge demo

test: $(BUILT)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(BUILT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src backends/cpu backends/cuda backends/ascend
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(BUILT)
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

conform: $(BUILT)
	$(BIN)/kernelforge conform --junit build/conform/junit.xml --html build/conform/report.html \
	  --digests build/conform/digests.json $(CONFORM_ARGS)

bench: $(BUILT)
	$(BIN)/kernelforge bench --all

docs: $(BUILT)
	$(BIN)/python docs/check.py

sanitize: $(BUILT)
	$(BIN)/python -m pytest -m slow tests/sanitizers $(PYTEST_ARGS)

# Runs the NEON engine too where an emulator is: apt-get install g++-aarch64-linux-gnu qemu-user.
nightly: $(BUILT)
	$(BIN)/python -m pytest -m 'slow or not slow' $(PYTEST_ARGS)
	$(BIN)/kernelforge conform --size full --junit build/conform/junit-full.xml --html build/conform/report-full.html
	KERNELFORGE_CUDA_VIRTUAL_ARCH=sm_90a $(BIN)/kernelforge conform --backends cuda:virtual \
	  --junit build/conform/junit-sm_90a.xml --html build/conform/report-sm_90a.html

package: $(BUILT)
	$(BIN)/python -m build

clean:
	rm -rf build dist *.egg-info src/*.egg-info $(BUILT)
