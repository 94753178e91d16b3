# Everything a newcomer needs: `make train` and `make test` set up what is missing by themselves.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: train test lint spectrum gpu gpu-tests gpu-kernels gpu-estimator gpu-training clean

# Train on the embedded default; ARGS are options of train.py, e.g. make train ARGS="--beta 10".
train: $(READY)
	$(PY) train.py $(ARGS)

# Lint, types, and the whole suite, benchmarks at toy size included. Each worker computes on one thread.
test: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Sweep of the two embedded data sets, all figures, the report, and the check of the paper's findings.
spectrum: $(READY)
	$(PY) benchmarks/spectrum.py

# On a machine with a GPU: its tests, then the benchmarks, whatever fails before them. Needs torch, torchvision, triton,
# timm, numpy, scikit-learn, pytest and pytest-benchmark, and no installation: GPU_PYTHON names the interpreter that has
# them. The parts can be run one by one.
GPU_PYTHON ?= $(if $(wildcard $(PY)),$(PY),$(PYTHON))
gpu:
	$(MAKE) --keep-going gpu-tests gpu-kernels gpu-estimator gpu-training

# Compiling takes most of the time: where pytest-xdist is there, four processes share it.
gpu-tests:
	$(GPU_PYTHON) -m pytest -m gpu $$($(GPU_PYTHON) -c 'import xdist' 2>/dev/null && echo '-n 4') tests/ops tests/kernels tests/information tests/training/test_gpu.py

gpu-kernels:
	$(GPU_PYTHON) -m pytest -s benchmarks/test_bottleneck.py

gpu-estimator:
	$(GPU_PYTHON) -m pytest -s benchmarks/test_mixture_gpu.py

gpu-training:
	$(GPU_PYTHON) -m pytest -s benchmarks/test_train.py benchmarks/test_scaling.py

$(READY): pyproject.toml $(wildcard csrc/*)
	@if command -v uv >/dev/null; then \
		uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && uv pip install --quiet --python $(PY) -e '.[dev]'; \
	else \
		$(PYTHON) -m venv $(VENV) && $(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]'; \
	fi
	@touch $@

clean:
	rm -rf $(VENV) build
