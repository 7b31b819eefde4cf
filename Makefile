# Everything a fresh machine with Python (3.11 or later), cargo and a C compiler needs: the first
# target that is called sets up .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUST := $(shell find rust/actstore-core rust/actstore-py -name '*.rs' -o -name 'Cargo.toml') Cargo.toml Cargo.lock

.PHONY: build test test-all check format fuzz sanitize bench demo clean

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

# AddressSanitizer watches the targets that reach unsafe loops; the others run several times faster without it.
# RUSTC_BOOTSTRAP lets a stable compiler take the flags that both need.
FUZZ_SECONDS ?= 20
FUZZ_TARGETS ?= blosc chain round_trip zstd record shard store zarr
FUZZ_SANITIZED := blosc chain round_trip zstd
FUZZ_FLAGS := -timeout=10 -rss_limit_mb=4096 -dict=rust/fuzz/json.dict -max_total_time=$(FUZZ_SECONDS)

fuzz:  ## hostile bytes, FUZZ_SECONDS for each of FUZZ_TARGETS
	cargo fuzz --version || cargo install cargo-fuzz
	@for target in $(FUZZ_TARGETS); do \
		case " $(FUZZ_SANITIZED) " in *" $$target "*) sanitizer=address;; *) sanitizer=none;; esac; \
		mkdir -p target/fuzz-corpus/$$target target/fuzz-artifacts/$$target; \
		RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir rust/fuzz --target-dir target/fuzz-$$sanitizer \
			--sanitizer $$sanitizer $$target target/fuzz-corpus/$$target rust/fuzz/corpus/$$target -- \
			$(FUZZ_FLAGS) -artifact_prefix=target/fuzz-artifacts/$$target/ || exit 1; \
	done

HOST = $(shell rustc -vV | sed -n 's/^host: //p')

sanitize:  ## the core's tests under AddressSanitizer and, where it is installed, Miri
	@for set in scalar avx2 avx512; do \
		echo "ACTSTORE_INSTRUCTION_SET=$$set"; \
		ACTSTORE_INSTRUCTION_SET=$$set ASAN_OPTIONS=allocator_may_return_null=1 RUSTC_BOOTSTRAP=1 \
			RUSTFLAGS=-Zsanitizer=address cargo test --quiet --package actstore-core --lib --tests \
			--target $(HOST) --target-dir target/sanitize || exit 1; \
	done
	@if cargo +nightly miri --version; then \
		cargo +nightly miri test --package actstore-core --lib --target-dir target/miri kernels::huffman; \
	fi

$(VENV)/.bench: benches/requirements.txt $(VENV)/.tools
	$(BIN)/python -m pip install --quiet -r benches/requirements.txt
	touch $@

bench: build $(VENV)/.bench  ## ours, the peers and the machine's limits, in one run
	$(BIN)/python -m benches $(BENCH)

demo: build  ## a small model reads Python's docstrings, questions are put to its layers
	$(BIN)/actstore demo -o target/demo.act

clean:
	rm -rf target $(VENV) python/actstore/*.so
