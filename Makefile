# The two commands of the README, each from nothing: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
NVCC := $(shell sed -n 's/^nvidia-cuda-crt==//p' constraints.txt)
SOURCES := CMakeLists.txt $(shell find benchmark evaluation exporter plugins runtime -not -path '*/__pycache__*' -type f)
export CLADA_ONNXRUNTIME_INCLUDE ?= $(CURDIR)/build/onnxruntime
# For whoever works on clada; a user's compiler may warn of what ours does not know.
export CMAKE_ARGS ?= -DCMAKE_COMPILE_WARNING_AS_ERROR=ON

.PHONY: demo test test-native test-cuda lint clean

demo: $(VENV)/package.stamp
	$(BIN)/python scripts/demo.py

# A file at a time in each of two processes: most tests use one core, and what a file makes is made once. In the order
# of conftest.py, not by the number of a file's tests, which says little of how long it takes.
test: lint test-native test-cuda
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The kernels alone, built with the address and undefined-behaviour sanitizers; those for CUDA in a host emulation, and
# over it, where TENSORRT_INCLUDE_DIR is set, the TensorRT plugins.
test-native: $(VENV)/package.stamp
	$(BIN)/cmake -S . -B build/native -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	    -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -DCLADA_KERNEL_TESTS=ON -DCLADA_SANITIZE=ON >/dev/null
	$(BIN)/cmake --build build/native --target clada_kernels_c clada_cuda_emulation clada_cuda_samples clada_trt_tests
	CLADA_KERNELS_LIBRARY=$(CURDIR)/build/native/tests/native/libclada_kernels_c.so \
	    CLADA_CUDA_EMULATION_LIBRARY=$(CURDIR)/build/native/tests/cuda_emulation/libclada_cuda_emulation.so \
	    CLADA_CUDA_SAMPLES_LIBRARY=$(CURDIR)/build/native/tests/cuda_emulation/libclada_cuda_samples.so \
	    CLADA_PLUGIN_PROBE_LIBRARY=$(CURDIR)/build/native/tests/tensorrt/libclada_plugin_probe.so \
	    CLADA_TRT_EMULATED_LIBRARY=$(CURDIR)/build/native/tests/tensorrt/libclada_trt_emulated.so \
	    LD_PRELOAD="$(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 tests/native

# The CUDA kernels as nvcc compiles them, for every architecture, warnings as errors, and what each takes of a
# multiprocessor compared with the table.
test-cuda: $(VENV)/package.stamp
	$(FETCHED_NVCC) $(BIN)/cmake -S . -B build/cuda -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	    -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python $(CMAKE_ARGS) -DCMAKE_CUDA_FLAGS=-Xptxas=-v \
	    -DCMAKE_CUDA_COMPILER_LAUNCHER=$(CURDIR)/scripts/keep_ptxas_output.sh >/dev/null
	$(FETCHED_NVCC) $(BIN)/cmake --build build/cuda --target clada_kernels_cuda
	$(BIN)/python scripts/cuda_resources.py --check

# Where the machine has no nvcc, the one from PyPI (99 MB), of the release of the headers that constraints.txt pins.
ifeq ($(CUDACXX)$(shell command -v nvcc),)
test-cuda: $(VENV)/nvcc.stamp
FETCHED_NVCC := CUDACXX=$(CURDIR)/$(VENV)/cuda/bin/nvcc LIBRARY_PATH=$(CURDIR)/$(VENV)/cuda/lib
endif

$(VENV)/nvcc.stamp: $(VENV)/dependencies.stamp
	$(PIP) install --quiet --constraint constraints.txt nvidia-cuda-nvcc==$(NVCC) nvidia-nvvm==$(NVCC)
	ln -sfn $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/nvidia/cu$(firstword $(subst ., ,$(NVCC))) $(VENV)/cuda
	touch $@

lint: $(VENV)/package.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(shell find plugins tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
	$(BIN)/mypy

# torch first and by itself: its CPU build where one is found, the default one elsewhere.
$(VENV)/dependencies.stamp: pyproject.toml constraints.txt scripts/onnxruntime_headers.sh
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet "torch==$(TORCH)+cpu" 2>/dev/null || $(PIP) install --quiet "torch==$(TORCH)"
	$(PIP) install --quiet --constraint constraints.txt scikit-build-core setuptools cmake ninja numpy
	scripts/onnxruntime_headers.sh $(CLADA_ONNXRUNTIME_INCLUDE)
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation ".[export,dev]"
	touch $@

$(VENV)/package.stamp: $(VENV)/dependencies.stamp $(SOURCES)
	$(PIP) install --quiet --no-deps --no-build-isolation --force-reinstall .
	touch $@

clean:
	rm -rf $(VENV) build out
