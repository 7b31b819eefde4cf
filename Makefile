# Everything a fresh machine with Python (3.11 or later), cargo and a C compiler needs: the first
# target that is called sets up .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUST := $(shell find rust -name '*.rs' -o -name 'Cargo.toml') Cargo.toml Cargo.lock

.PHONY: build test test-all check format bench demo clean

build: $(VENV)/.built  ## build the extension, in release, into .venv

$(VENV)/.tools: requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

$(VENV)/.built: $(VENV)/.tools $(RUST) pyproject.toml
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --release --quiet
	touch $@

test: build  ## the fast tests
	cargo test --release --quiet --package actstore-core
	$(BIN)/python -m pytest -q -m "not slow"

test-all: build  ## all tests
	cargo test --release --quiet --package actstore-core
	$(BIN)/python -m pytest -q

check: build  ## formatting, lints, types, stubs
	cargo fmt --check
	cargo clippy --release --all-targets --quiet -- -D warnings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest actstore._native --concise --ignore-disjoint-bases

format:  ## format everything
	cargo fmt
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/.bench: benches/requirements.txt $(VENV)/.tools
	$(BIN)/python -m pip install --quiet -r benches/requirements.txt
	touch $@

bench: build $(VENV)/.bench  ## ours, the peers and the machine's limits, in one run
	$(BIN)/python -m benches $(BENCH)

demo: build  ## a small model reads Python's docstrings, questions are put to its layers
	$(BIN)/actstore demo -o target/demo.act

clean:
	rm -rf target $(VENV) python/actstore/*.so
