# From a fresh clone, `make demo` makes a reconstruction of simulated images, `make test` runs the tests, and `make check`
# checks style, types and the layers of packages.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
TEST_PROCESSES ?= 2

.PHONY: demo test check clean

demo: $(INSTALLED)
	$(BIN)/emsplat demo -o demo --overwrite

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

check: $(INSTALLED)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

# The constraint's exact version lets pip take a build of torch without CUDA where one is offered.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "emsplat needs Python 3.11 or newer; try make PYTHON=python3.12")'
	@echo 'making .venv and installing into it; the first time this takes some minutes'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(INSTALLED)

# numba's cache notices a change in the file it compiled, not in one that this file calls.
clean:
	rm -rf .venv demo
	find src -name __pycache__ -prune -exec rm -rf {} +
