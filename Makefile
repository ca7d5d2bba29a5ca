# Each target makes the virtual environment when it is missing, so that it works on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two for the suite's own workers; more only costs memory on a laptop.
WORKERS ?= 2

.PHONY: quickstart test lint mutation soak clean

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

quickstart: $(VENV)/installed  ## the whole method on a small task: about 5 minutes on 2 CPU cores
	$(BIN)/python benchmarks/quickstart.py

test: $(VENV)/installed
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

mutation: $(VENV)/installed  ## flip every sign in functional/ and see a test fail
	$(BIN)/python tests/mutation.py

soak: $(VENV)/installed  ## kill runs at random moments 60 times, and compare what comes of them: half an hour
	$(BIN)/python tests/reliability/soak.py --kills 60

clean:
	rm -rf $(VENV) runs
