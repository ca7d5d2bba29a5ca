# Each target makes the virtual environment when it is missing, so that it works on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two for the suite's own workers; more only costs memory on a laptop.
WORKERS ?= 2

.PHONY: quickstart test lint mutation soak audit oldest clean

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

quickstart: $(VENV)/installed  ## the whole method on a small task: about 5 minutes on 2 CPU cores
	$(BIN)/python benchmarks/quickstart.py

test: $(VENV)/installed
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

mutation: $(VENV)/installed  ## flip every sign in functional/ and see a test fail
	$(BIN)/python tests/mutation.py

soak: $(VENV)/installed  ## kill runs at random moments 60 times, and compare what comes of them: about 6 minutes
	$(BIN)/python tests/reliability/soak.py --kills 60

AUDIT := $(VENV)-audit
# Where vulnerabilities are looked up: pypi or osv. Both need the network.
SERVICE ?= pypi

audit: $(VENV)/installed  ## known vulnerabilities of all that is installed; what cannot be looked up is a failure
	test -x $(AUDIT)/bin/pip-audit || $(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --upgrade pip-audit
	$(AUDIT)/bin/pip-audit --strict --skip-editable --progress-spinner off --vulnerability-service $(SERVICE) \
		--path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

UV := $(VENV)-uv
OLDEST := $(VENV)-oldest

oldest:  ## the tests with the oldest Python and packages that pyproject.toml allows: about 20 minutes
	test -x $(UV)/bin/uv || $(PYTHON) -m venv $(UV)
	$(UV)/bin/python -m pip install --quiet --upgrade uv
	$(UV)/bin/uv venv --quiet --clear --python 3.10 $(OLDEST)
	$(UV)/bin/uv pip install --quiet --python $(OLDEST) --resolution lowest-direct --editable ".[test]"
	$(OLDEST)/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile

clean:
	rm -rf $(VENV) $(AUDIT) $(UV) $(OLDEST) runs
