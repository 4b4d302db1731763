# Every target sets up .venv by itself, from pyproject.toml and constraints.txt.

PYTHON ?= python3
DEVICE ?= cpu
# Processes that share the tests, file by file.
JOBS ?= 2
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := pyproject.toml constraints.txt py.typed $(wildcard *.py) $(shell find manifolds optim psi testing -name '*.py')

.PHONY: demo test test-quick test-long check docs clean

demo: .venv/demo
	$(BIN)/python -m retract --plot out/unbalanced.png

test: .venv/dev
	$(BIN)/python -m pytest -q --device $(DEVICE) -n $(JOBS) --dist loadfile

# Before every commit: laws, core and parity of paths, without what takes seconds a test.
test-quick: .venv/dev
	$(BIN)/python -m pytest -q --device $(DEVICE) -n $(JOBS) --dist loadfile -m 'not long and not slow' tests/manifolds tests/optim

# What takes minutes a test, hours in all. MNIST=DIR, the folder with MNIST's four .gz files, for the tests that need it; `make .venv/architectures`
# first for the networks of public packages, which are skipped without them.
test-long: .venv/dev
	MNIST=$(MNIST) $(BIN)/python -m pytest -q --device $(DEVICE) -m long

# mypy runs from another folder, because the root is the package and would be found twice.
check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd tests && MYPYPATH=../docs ../$(BIN)/mypy -p retract -p experiments -p studies --config-file ../pyproject.toml

# The site, in out/site. The gallery is executed (the code of the other pages by `make test`), and a warning fails the build.
docs: .venv/docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs out/site

clean:
	rm -rf .venv build out docs/auto_gallery *.egg-info

# The package is installed, not linked: what is tested is what is packed. setuptools leaves a build folder behind,
# whose stale files would be packed the next time.
define install
	rm -rf build
	$(PIP) install -q -c constraints.txt '.[$(1)]'
	$(PIP) install -q --no-deps --force-reinstall .
	rm -rf build *.egg-info
	touch $@
endef

.venv/created:
	$(PYTHON) -m venv .venv
	touch $@

.venv/demo: .venv/created $(SOURCES)
	$(call install,figures)

# What docs/experiments needs.
.venv/experiments: .venv/created $(SOURCES)
	$(call install,experiments)

.venv/dev: .venv/created $(SOURCES)
	$(call install,figures$(comma)experiments$(comma)dev$(comma)docs)

.venv/docs: .venv/created $(SOURCES)
	$(call install,figures$(comma)docs)

# What psi.find is tried on. vit-pytorch asks for torchvision, which its networks do not need: it comes alone.
.venv/architectures: .venv/dev $(SOURCES)
	$(PIP) install -q --no-deps -c constraints.txt vit-pytorch
	$(call install,architectures)

comma := ,
