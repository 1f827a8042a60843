# Everything on a machine that has only Python 3.11+ and make: each target sets up what it needs in .venv. (`minnow` fetches
# its corpus with npm and apt-get too.)
PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
SAMPLE := "Tell me a short story about a little fish."
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: chat serve test check browser format minnow clean help

help:            ## show this list
	@grep -E '^[a-z]+: .*##|^[a-z]+:  *##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

chat: $(VENV)/.installed   ## talk with smol (made at the first start; without network: minnow)
	@if [ -t 0 ] && [ -t 1 ]; then $(BIN)/fathom chat; else $(BIN)/fathom chat -p $(SAMPLE) </dev/null; fi

serve: $(VENV)/.installed   ## serve smol (the same): API and chat page on http://127.0.0.1:8000
	@$(BIN)/fathom serve

test: $(VENV)/.installed-dev browser   ## run the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# The chat page is tested in a real browser. Without one its tests are skipped, and fail where CI is set.
browser:         ## see that Chromium is there; Debian's package is installed where we may
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && { echo "installing Chromium for the tests of the chat page"; apt-get update -qq; \
	       DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; }; } \
	  || echo "Chromium is not installed: the tests of the chat page will be skipped (apt-get install chromium)"

check: $(VENV)/.installed-dev   ## ruff lint and format, mypy, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev   ## rewrite the sources as ruff likes them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

minnow: $(VENV)/.installed   ## build the next minnow from nothing: corpus, pretraining, extension, SFT, release (a day and a half)
	$(BIN)/fathom corpus build --out data/minnow --digits single
	$(BIN)/fathom train pretrain recipes/minnow-pretrain.toml
	$(BIN)/fathom train extend recipes/minnow-extend.toml
	$(BIN)/fathom train sft recipes/minnow-sft.toml
	$(BIN)/fathom train release runs/minnow-sft --to runs/minnow

clean:           ## remove the environment and caches (runs/ and data/ stay)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# The environment is rebuilt whenever pyproject.toml changes. torch comes first and pinned: a range would let the resolver
# take another build.
$(VENV)/.installed: pyproject.toml
	rm -rf $(VENV)
	$(PYTHON) -c 'import sys; sys.exit("fathom needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $(TORCH)
	$(PIP) install --quiet -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet -e ".[test,check]"
	@touch $@
