# One environment, made once, for every target: `make` alone lists them.
# Another Python:               make setup PYTHON=python3.12
# Linux without an NVIDIA card: make setup TORCH=cpu    (spares several GB of CUDA libraries)
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip
BENCH  := bench/.venv
TORCH_CPU := https://download.pytorch.org/whl/cpu
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup demo test torture check format docs bench constraints clean

help:
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Make the environment in .venv and install polytask into it

demo: $(STAMP)  ## Train and compare the main job; print a table and the report's path
	$(BIN)/polytask demo

test: $(STAMP)  ## Run every test, warnings as errors
	$(PYTEST) -n 2 -W error

torture: $(STAMP)  ## Kill trainings at ten random moments and inside saves; the end must not change by a bit
	POLYTASK_KILLS=10 $(PYTEST) tests/e2e/test_kill.py

check: $(STAMP)  ## Lint, formatting, types, layer rule and size budget
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) tests/test_layers.py tests/test_size.py

format: $(STAMP)  ## Format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## Run the code blocks of README.md and docs/
	$(PYTEST) tests/test_docs.py

bench: $(BENCH)/.installed  ## Measure speed beside the peers and write docs/benchmarks.md; some 25 minutes, with SIZE=--quick a few
	$(BENCH)/bin/python bench/suite.py $(SIZE)

# Keeps the versions already written unless pyproject.toml asks for others; delete constraints.txt to renew them all.
constraints: $(STAMP)  ## Write constraints.txt anew after a change of dependencies
	$(PIP) install --quiet uv
	echo "torch==2.13.0" > $(VENV)/pins.in
	$(BIN)/uv pip compile --quiet --universal --no-annotate --no-header --python-version 3.11 \
		--all-extras --group dev -c $(VENV)/pins.in pyproject.toml -o constraints.txt

clean:  ## Remove caches and build output; the environment and runs/ stay
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# Upgrading pip comes first: a fresh environment's may be too old for --group.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade "pip>=25.1"
ifeq ($(TORCH),cpu)
	$(PIP) install --quiet --no-deps --retries 0 --timeout 15 \
		--extra-index-url $(TORCH_CPU) "$$(grep '^torch==' constraints.txt)"
endif
	$(PIP) install --quiet -c constraints.txt --group dev -e ".[export,index,serve,tune]"
	@touch $@

# torch comes first and alone, so that no peer can bring another one; TensorFlow must not stand beside it.
$(BENCH)/.installed: pyproject.toml constraints.txt bench/requirements.txt bench/requirements-tf.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BENCH)/bin/python -m pip install --quiet $(if $(filter cpu,$(TORCH)),--extra-index-url $(TORCH_CPU)) "$$(grep '^torch==' constraints.txt)"
	$(BENCH)/bin/python -m pip install --quiet -c constraints.txt -r bench/requirements.txt -e .
	$(PYTHON) -m venv $(BENCH)-tf
	$(BENCH)-tf/bin/python -m pip install --quiet -c constraints.txt -r bench/requirements-tf.txt
	@touch $@
