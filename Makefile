# residual.cu
#
#   make            builds the machine this computer has: CUDA when a GPU answers, else the CPU machine
#   make demo       installs what is missing, builds, prepares a corpus, trains, evaluates, samples, plots
#   make test       installs what is missing, builds fp32 and bf16, runs every test
#   make bench      every kernel by itself, then whole models; on the CPU also what a step of gpt2-medium moves on a GPU
#   make lint       clang-tidy over the CPU build          make deps     installs packages, nothing else
#   make carry      gathers header libraries into .carry/ for a machine without packages (use: make DEPS=.carry)
#
#   BACKEND=cpu|cuda  PRECISION=fp32|bf16  CUDA=/usr/local/cuda  ARCHS="80 90a"  DEPS=FOLDER
#   NO_PCRE2=1   builds without PCRE2, as on a machine that lacks it: no GPT-2 tokenizer, no program tokenize
#   VARIANT=check|asan   (CPU) kernels under the checking mode / AddressSanitizer; builds tests of kernels, check of rules too
#
# A build lives in build/BACKEND-PRECISION[-VARIANT]/; build/NAME links to the programs made last.

CUDA ?= /usr/local/cuda
NVCC ?= $(firstword $(wildcard $(CUDA)/bin/nvcc) $(shell command -v nvcc 2>/dev/null))
HAS_GPU := $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo yes)

ifeq ($(origin BACKEND), undefined)
  BACKEND := $(if $(and $(HAS_GPU),$(NVCC)),cuda,cpu)
endif
PRECISION ?= $(if $(filter cuda,$(BACKEND)),bf16,fp32)
VARIANT ?=
DEPS ?=

$(if $(filter-out cpu cuda,$(BACKEND)),$(error BACKEND=$(BACKEND): say cpu or cuda))
$(if $(filter-out fp32 bf16,$(PRECISION)),$(error PRECISION=$(PRECISION): say fp32 or bf16))
$(if $(filter-out check asan,$(VARIANT)),$(error VARIANT=$(VARIANT): say check or asan, or leave it out))
$(if $(and $(VARIANT),$(filter cuda,$(BACKEND))),$(error VARIANT=$(VARIANT) is of the CPU machine: use BACKEND=cpu))

BUILD := build/$(BACKEND)-$(PRECISION)$(addprefix -,$(VARIANT))
OBJ := $(BUILD)/obj
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)

.DEFAULT_GOAL := all

# ---- sources --------------------------------------------------------------------------------------------------------
KERNELS := $(wildcard kernels/*.cu kernels/*.cpp residual/*.cu residual/*.cpp optimizer/*.cu)
LIBRARY := $(wildcard model/*.cu model/*.cpp parallel/*.cpp optimizer/*.cpp dataloader/*.cpp checkpoint/*.cpp \
             eval/*.cpp driver/*.cpp driver/*.cu)
SIMT := $(if $(filter cpu,$(BACKEND)),$(wildcard simt/*.cpp))
BENCH := $(wildcard dev/bench/bench*.cu)
PROGRAMS := train_gpt2 eval_gpt2 sample_gpt2 tokenize bench
# PCRE2 cuts text for GPT-2's tokenizer; everything else does without.
PCRE2 := $(if $(NO_PCRE2),,$(if $(wildcard $(addsuffix /pcre2.h,$(addsuffix /include,$(DEPS)) /usr/include /usr/local/include)),\
           $(firstword $(wildcard $(addsuffix /lib/libpcre2-8.a,$(DEPS)) /usr/lib/*/libpcre2-8.so /usr/lib*/libpcre2-8.so \
             /usr/local/lib/libpcre2-8.so))))
NEEDS_PCRE2 := dataloader/bpe.cpp dataloader/pretokenize.cpp tests/test_bpe.cpp
ifeq ($(PCRE2),)
  $(info no PCRE2: the program tokenize is left out (Debian package libpcre2-dev))
  PROGRAMS := $(filter-out tokenize,$(PROGRAMS))
  LIBRARY := $(filter-out $(NEEDS_PCRE2),$(LIBRARY))
endif
# Tests of kernels and of the CPU machine: what the check and asan variants build; check has the rules inside a model too.
KERNEL_TESTS := $(wildcard $(addprefix tests/test_,$(addsuffix .c*,simt* ptx* matmul* fp8 fp8_activation cublaslt activation attention* seam* depth_attention \
                  embedding bias classifier scoring rope swiglu upload adamw gradient_norm nccl hc mhc \
                  branch_scale value_residual x0 gate_clip $(if $(filter check,$(VARIANT)),rules traffic fp8_model))))
ALL_TESTS := $(filter-out $(if $(PCRE2),,$(NEEDS_PCRE2)),$(wildcard tests/test_*.cpp tests/test_*.cu)) tests/run_program.cpp
TESTS := $(if $(VARIANT),$(KERNEL_TESTS) tests/run_program.cpp,$(if $(filter cuda,$(BACKEND)),$(filter-out tests/test_simt% tests/test_traffic%,$(ALL_TESTS)),$(ALL_TESTS)))

objects = $(patsubst %,$(OBJ)/%.o,$(1))
KERNEL_OBJ := $(call objects,$(KERNELS) $(SIMT))
LIB_OBJ := $(KERNEL_OBJ) $(call objects,$(LIBRARY))
MODEL_OBJ := $(call objects,$(wildcard model/*.cu model/*.cpp parallel/*.cpp) checkpoint/files.cpp checkpoint/safetensors.cpp)
TEST_OBJ := $(call objects,$(TESTS)) $(OBJ)/tests/main.cpp.o

# ---- flags ----------------------------------------------------------------------------------------------------------
DEFINES := -DPRECISION_$(if $(filter bf16,$(PRECISION)),BF16,FP32) -DNDEBUG
INCLUDES := -I. $(if $(DEPS),-I$(DEPS)/include) -Itests
# The version is seen by one file only, so that a commit does not rebuild everything; but that one follows it.
$(shell mkdir -p $(OBJ)/driver; echo '$(VERSION)' | cmp -s - $(OBJ)/driver/version.stamp || echo '$(VERSION)' > $(OBJ)/driver/version.stamp)
$(OBJ)/driver/version.cpp.o: $(OBJ)/driver/version.stamp
$(OBJ)/driver/version.cpp.o: DEFINES += -DRESIDUAL_VERSION='"$(VERSION)"'

ifeq ($(BACKEND),cpu)
  CXX := g++
  OPENBLAS ?= $(firstword $(wildcard /usr/lib/*/openblas-openmp/libopenblas.so))
  MPI_COMPILE = $(shell mpicxx -showme:compile 2>/dev/null)
  MPI_LINK = $(shell mpicxx -showme:link 2>/dev/null)
  WARN := -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-restrict
  CXXFLAGS := -std=c++20 -g1 -march=native -fopenmp -fno-strict-aliasing -ffp-contract=fast -fno-math-errno -fno-trapping-math $(WARN)
  SIMT_FLAGS :=
  ifeq ($(VARIANT),check)
    # Kernels are compiled with -fsanitize=thread for its memory-access hooks; simt/ supplies them, libtsan is not linked.
    # Reports need lines, which -g1 has; with -g instrumented kernels take half as long again to compile.
    OPT := -O1
    SIMT_FLAGS := -DSIMT_CHECK
    KERNEL_FLAGS := -DSIMT_CHECK -fsanitize=thread
  else ifeq ($(VARIANT),asan)
    # Not -O1 -g: the long unrolled kernels of residual/ take four times as long to compile with it.
    OPT := -Og -fsanitize=address -fno-omit-frame-pointer
    LDFLAGS += -fsanitize=address
  else
    OPT := -O3
  endif
  INCLUDES += -Isimt
  LIBS = $(OPENBLAS) -Wl,-rpath,$(dir $(OPENBLAS)) -lboost_context $(MPI_LINK) $(PCRE2) -lpthread -ldl
  LINK := g++ -fopenmp -rdynamic
else
  ARCHS ?= $(or $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 | \
             sed 's/\.//;s/^90$$/90a/;s/^100$$/100a/'),80 90a)
  # The PTX beside machine code lets cards we did not name run too.
  GENCODE := $(foreach a,$(ARCHS),-gencode arch=compute_$(a),code=sm_$(a)) -gencode arch=compute_80,code=compute_80
  NVFLAGS := -std=c++20 -O3 -lineinfo --threads 0 -Werror all-warnings -Xcompiler -Wall,-fno-strict-aliasing \
             -Xptxas -v $(GENCODE)
  CXX := g++
  CXXFLAGS := -std=c++20 -fno-strict-aliasing -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-unused-parameter
  OPT := -O2
  # The toolkit's headers are not ours to warn about.
  INCLUDES += -Ikernels/gpu -isystem $(CUDA)/include
  NCCL := $(firstword $(wildcard $(CUDA)/lib64/libnccl.so /usr/lib/*/libnccl.so))
  LIBS = -L$(CUDA)/lib64 -lcublasLt -lcudart $(NCCL) $(PCRE2) -lpthread -ldl
  LINK := g++ -Wl,-rpath,$(CUDA)/lib64
endif

# ---- targets --------------------------------------------------------------------------------------------------------
.PHONY: all programs tests demo test bench lint deps carry clean cuda-gate
all: $(if $(VARIANT),tests,programs)
programs: $(addprefix $(BUILD)/,$(PROGRAMS)) links
tests: $(BUILD)/tests $(if $(VARIANT),,$(BUILD)/ranks)

.PHONY: links
links: $(addprefix $(BUILD)/,$(PROGRAMS))
	@for p in $(PROGRAMS); do ln -sfn $(notdir $(BUILD))/$$p build/$$p; done

$(addprefix $(BUILD)/,$(filter-out bench,$(PROGRAMS))): $(BUILD)/%: $(OBJ)/%.main.o $(LIB_OBJ)
	@echo link $@
	@$(LINK) $(LDFLAGS) -o $@ $^ $(LIBS)
$(BUILD)/bench: $(call objects,$(BENCH)) $(LIB_OBJ)
	@echo link $@
	@$(LINK) $(LDFLAGS) -o $@ $^ $(LIBS)
$(BUILD)/tests: $(TEST_OBJ) $(if $(VARIANT),$(KERNEL_OBJ) $(if $(filter check,$(VARIANT)),$(MODEL_OBJ),$(call objects,$(wildcard parallel/*.cpp))),$(LIB_OBJ))
	@echo link $@
	@$(LINK) $(LDFLAGS) -o $@ $^ $(LIBS)
# The program that tests collectives under mpirun.
$(BUILD)/ranks: $(OBJ)/tests/ranks.cpp.o $(LIB_OBJ)
	@echo link $@
	@$(LINK) $(LDFLAGS) -o $@ $^ $(LIBS)

ifeq ($(BACKEND),cpu)
# simt/ itself is never instrumented by the checking mode: it is the checker.
$(OBJ)/simt/%.cpp.o: simt/%.cpp
	@mkdir -p $(@D)
	@echo g++ $<
	@$(CXX) $(CXXFLAGS) $(OPT) $(DEFINES) $(SIMT_FLAGS) $(INCLUDES) $(MPI_COMPILE) -MMD -MP -c $< -o $@
$(OBJ)/%.cu.o: %.cu
	@mkdir -p $(@D)
	@echo g++ $<
	@$(CXX) -x c++ $(CXXFLAGS) $(OPT) $(DEFINES) $(KERNEL_FLAGS) $(INCLUDES) -MMD -MP -c $< -o $@
$(OBJ)/%.main.o: %.cu
	@mkdir -p $(@D)
	@echo g++ $<
	@$(CXX) -x c++ $(CXXFLAGS) $(OPT) $(DEFINES) $(INCLUDES) -MMD -MP -c $< -o $@
else
$(OBJ)/%.cu.o: %.cu
	@mkdir -p $(@D)
	@echo nvcc $<
	@$(NVCC) $(NVFLAGS) $(DEFINES) $(INCLUDES) -MMD -MP -c $< -o $@ > $@.ptxas 2>&1 || (cat $@.ptxas; rm -f $@; exit 1)
$(OBJ)/%.main.o: %.cu
	@mkdir -p $(@D)
	@echo nvcc $<
	@$(NVCC) $(NVFLAGS) $(DEFINES) $(INCLUDES) -MMD -MP -c $< -o $@ > $@.ptxas 2>&1 || (cat $@.ptxas; rm -f $@; exit 1)
endif
$(OBJ)/%.cpp.o: %.cpp
	@mkdir -p $(@D)
	@echo g++ $<
	@$(CXX) $(CXXFLAGS) $(OPT) $(DEFINES) $(SIMT_FLAGS) $(INCLUDES) $(FIRST_HEADER) -MMD -MP -c $< -o $@
$(OBJ)/%.main.o: %.cpp
	@mkdir -p $(@D)
	@echo g++ $<
	@$(CXX) $(CXXFLAGS) $(OPT) $(DEFINES) $(INCLUDES) -MMD -MP -c $< -o $@

# Catch2's main is the same for every build: once, unoptimised.
build/catch_main.o: tests/main.cpp
	@mkdir -p build
	g++ -std=c++20 -O0 $(if $(DEPS),-I$(DEPS)/include) -c $< -o $@
$(OBJ)/tests/main.cpp.o: build/catch_main.o
	@mkdir -p $(@D)
	ln -sf ../../../catch_main.o $@

# Catch2 and the machine's headers take longer to read than most tests take to compile: read once for each build. g++ forgets
# then which of them are the system's, and warns of what it guesses about their insides.
ifeq ($(BACKEND),cpu)
PRECOMPILED := $(OBJ)/tests/precompiled.h
$(PRECOMPILED).gch: tests/test.h
	@mkdir -p $(@D)
	@echo '#include "test.h"' > $(PRECOMPILED)
	@$(CXX) -x c++-header $(CXXFLAGS) $(OPT) $(DEFINES) $(SIMT_FLAGS) $(INCLUDES) -MMD -MP -c $(PRECOMPILED) -o $@
$(call objects,$(filter tests/test_%.cpp,$(TESTS))): $(PRECOMPILED).gch
$(call objects,$(filter tests/test_%.cpp,$(TESTS))): FIRST_HEADER := -include $(PRECOMPILED) \
    $(addprefix -Wno-,array-bounds stringop-overflow stringop-overread maybe-uninitialized dangling-reference)
endif

# Option and JSON parsing is compiled for speed of compilation. So are the tests; what they test is compiled for speed.
$(OBJ)/driver/%.o $(OBJ)/checkpoint/%.o $(OBJ)/eval/%.o $(OBJ)/%.main.o $(OBJ)/model/config.cpp.o: OPT := -O1
$(OBJ)/tests/%: OPT := $(if $(VARIANT),$(OPT),-O1)

demo: deps
	dev/demo.sh
test: deps
	tests/run.sh
deps:
	@dev/deps.sh
bench:
	$(MAKE) programs
	$(BUILD)/bench
	dev/bench/models.sh $(BUILD)
ifeq ($(BACKEND),cpu)
	$(MAKE) BACKEND=cpu PRECISION=bf16 build/cpu-bf16/bench
	SIMT_DRY=1 OMP_NUM_THREADS=132 build/cpu-bf16/bench --kernel step --count
	SIMT_DRY=1 OMP_NUM_THREADS=132 build/cpu-bf16/bench --kernel step --count --fp8
endif
carry:
	dev/carry.sh .carry
lint: compile_commands.json
	dev/lint.sh
compile_commands.json: Makefile
	python3 dev/compile_commands.py
clean:
	rm -rf build compile_commands.json

# No register spills, no serialised wgmma, no ignored setmaxnreg; prints registers and shared memory of every kernel.
cuda-gate: programs tests
	dev/cuda_gate.py $(OBJ)

-include $(shell find $(OBJ) -name '*.d' 2>/dev/null)
