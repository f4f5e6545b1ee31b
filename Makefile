# make demo    a Llama served by vLLM with and without the plugin, compared
# make test    the tests; `make test ARGS="-k rules"` for some of them
# make bench   the benchmark; `make bench ARGS=--quick` for a dozen shapes
# make lint    ruff and clang-format
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
HAS_GPU := $(shell nvidia-smi > /dev/null 2>&1 && echo yes)
# Two processes: most of a test run is one core of compiling. On a GPU they would share its memory.
TEST_JOBS := $(if $(HAS_GPU),,-n 2 --dist loadgroup)
SOURCES := $(shell find csrc -type f)
CXX_FILES := $(shell find csrc tests benchmarks -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test test-gpu test-matrix test-mutations bench bench-report bench-check lint format wheel clean

demo: $(VENV)/.built
	$(PY) examples/serve_llama.py $(ARGS)

test: $(VENV)/.built
	$(PY) -m pytest $(TEST_JOBS) $(ARGS)

test-gpu: $(VENV)/.built
	$(PY) -m pytest -m "gpu or sanitizer" $(ARGS)

test-matrix: $(VENV)/.built
	$(PY) -m tests.vllm.matrix $(ARGS)

test-mutations: $(VENV)/.built
	$(PY) -m tests.gpu.mutations build build/mutations $(if $(HAS_GPU),,--device cpu) $(ARGS)
	$(PY) -m tests.gpu.mutations run build/mutations $(if $(HAS_GPU),,--device cpu) $(ARGS)

bench: $(VENV)/.peers
	$(PY) -m benchmarks.run $(if $(HAS_GPU),,--device cpu --compile-seconds 0) $(ARGS)

bench-report: $(VENV)/.built
	$(PY) -m benchmarks.report
	$(PY) examples/served_report.py

bench-check: $(VENV)/.built
	$(PY) -m benchmarks.check_regression $(OLD) $(NEW)

wheel: $(VENV)/.built
	$(PY) -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .

$(VENV)/.deps: scripts/make_venv.sh
	bash scripts/make_venv.sh $(PYTHON) $(VENV)
	touch $@

$(VENV)/.built: $(VENV)/.deps setup.py pyproject.toml $(SOURCES)
	$(PY) -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

# The kernels to compare with; each is optional.
$(VENV)/.peers: $(VENV)/.built
	$(if $(HAS_GPU),$(PY) -m pip install --quiet flashinfer-python quack-kernels)
	touch $@

.venv-lint/.ready:
	$(PYTHON) -m venv .venv-lint
	.venv-lint/bin/python -m pip install --quiet --disable-pip-version-check "ruff==0.17.*" "clang-format==23.*"
	touch $@

lint: .venv-lint/.ready
	.venv-lint/bin/ruff check .
	.venv-lint/bin/ruff format --check .
	.venv-lint/bin/clang-format --dry-run --Werror $(CXX_FILES)

format: .venv-lint/.ready
	.venv-lint/bin/ruff check --fix .
	.venv-lint/bin/ruff format .
	.venv-lint/bin/clang-format -i $(CXX_FILES)

clean:
	rm -rf build dist *.egg-info hp_norm_plugin/lib/*.so hp_norm_plugin/lib/build_info.json $(VENV)/.built
