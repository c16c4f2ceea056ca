# `make` lists the targets. Everything happens in .venv, made on first use.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: tools
tools:
	@$(PYTHON) scripts/check_tools.py

# One environment for everything; rebuilt when what it is made from changes.
$(VENV)/.ready: pyproject.toml setup.py $(wildcard csrc/*.[ch] portseccomp/*.pyx portseccomp/*.pxd) | tools
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,bench,lint]'
	touch $@

.PHONY: build
build: $(VENV)/.ready  ## build into .venv

.PHONY: demo
demo: build  ## guard a real server: allowed on one port, denied on another
	@$(BIN)/python examples/demo.py

.PHONY: test
test: build test-c  ## run all tests
	@$(PYTHON) scripts/check_tools.py test
	$(BIN)/python -m pytest tests

.PHONY: test-c
test-c: | tools  ## run the C core's own tests
	$(MAKE) --no-print-directory -C csrc test

.PHONY: sanitize
sanitize: | tools  ## run the core's tests under ASan, UBSan and TSan
	$(MAKE) --no-print-directory -C csrc sanitize

.PHONY: test-sanitized
test-sanitized: build  ## run the suite with ASan, LSan and UBSan; ALL=1: all of it
	$(BIN)/python scripts/test_sanitized.py $(if $(ALL),--all)

FUZZ_SECONDS ?= 60

.PHONY: fuzz
fuzz:  ## run each fuzz target for FUZZ_SECONDS
	@$(PYTHON) tests/fuzz/run.py --seconds $(FUZZ_SECONDS)

.PHONY: test-kernels
test-kernels: build  ## run the tests on older and newer kernels, in QEMU
	@$(BIN)/python scripts/test_kernels.py $(KERNELS)

.PHONY: soak
soak: build  ## 10,000,000 requests, or PORTSECCOMP_SOAK=N or 60s: nothing grows
	$(BIN)/python tests/soak.py

.PHONY: bench
bench: build  ## measure latencies beside their floors
	$(BIN)/python -m pytest benchmarks --benchmark-only

.PHONY: lint
lint: build  ## ruff, mypy --strict, stubtest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict portseccomp
	$(BIN)/python -m mypy.stubtest portseccomp._core

.PHONY: clean
clean:  ## remove everything that was built
	rm -rf $(VENV) build dist *.egg-info portseccomp/_core*.so portseccomp/_core.c
	$(MAKE) --no-print-directory -C csrc clean
