PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= report

.PHONY: validate held-out claims test acceptance notebooks benchmarks docs dist clean

validate: $(STAMP)
	$(BIN)/bnwd validate --out $(OUT)

# held-out predictions, three hours; the page, its figure, the table and the period models are copied to docs
held-out: $(STAMP)
	rm -f held_out/held_out.md
	$(BIN)/bnwd validate --held-out --out held_out; code=$$?; cp held_out/held_out.md held_out/held_out.png docs/; \
	mkdir -p docs/held_out; cp held_out/held_out.csv held_out/models/*.json docs/held_out/; exit $$code

# test every claim, a quarter of an hour; the page and its figures are copied to docs
claims: $(STAMP)
	$(BIN)/bnwd claims --out claims; code=$$?; mkdir -p docs/claims; cp claims/claims.md claims/*.png docs/claims/; exit $$code

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 -m "not acceptance and not gpu"

acceptance: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m "not gpu"

# the text form of each notebook, run at full size: the .ipynb with its figures
notebooks: $(STAMP)
	$(BIN)/jupytext --quiet --to ipynb notebooks/*.py
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

benchmarks: $(STAMP)
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

# the site, into build/site; README.html is its first page
docs: $(STAMP)
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env -b html -c docs . build/site

# wheel and source archive, into dist
dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build

$(STAMP): setup.cfg pyproject.toml constraints.txt theory/_version.py
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "bnwd needs Python 3.11 or newer; set PYTHON=...")'
	@echo "installing into $(VENV): some minutes, and up to 6 GB of packages the first time"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV)
