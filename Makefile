# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test lint data bindings clean

demo: $(READY) data
	$(BIN)/python -m tools.demo

# A process a core, of one thread each: most of the time goes into starting programs.
test: lint data
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Real photographs: installed with the environment, never committed (CC BY-NC-SA 4.0).
data: $(READY)
	$(BIN)/python -m tools.prepare_elpv --output build/elpv

# TensorRT's Python bindings of each supported version, 5 MB: a test asks them what they have.
bindings: $(READY)
	$(BIN)/python -m tools.trt_api

# Reinstalled whenever what it was made from changes.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf build $(VENV)
