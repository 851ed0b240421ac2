# GNU make, 3.81 (macOS) or newer. `make` alone lists what there is.

SHELL := /bin/bash
VENV := .venv
PYTHON_IN_VENV := $(VENV)/bin/python
# Stages call `python`: it must be the environment's.
IN_VENV := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
# The copy of the lock that the environment was made from.
INSTALLED := $(VENV)/requirements.installed

# The first of these that is Python 3.11 or newer makes the environment; `make run PYTHON=…` names another.
PYTHON ?= python3.13 python3.12 python3.11 python3
ARGS :=
# For what is shared: which remote, and how closely to look at it.
TO_SHARE = $(if $(REMOTE),--remote "$(REMOTE)") $(if $(VERIFY),--depth "$(VERIFY)")

.PHONY: help run train-parallel compare test check profile pull push verify-remote resolve verify faults base plots clean lock audit environment
.DEFAULT_GOAL := help

help: ## list the targets
	@echo "usage: make TARGET"; echo
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1  \2/p' $(MAKEFILE_LIST) | awk '{ n = $$1; sub(/^ *[^ ]+ +/, ""); printf "  %-14s %s\n", n, $$0 }'

run: environment ## run the whole recipe: an environment, the lock, `dvc repro`
	@$(IN_VENV) python -m stages.ready
	@$(IN_VENV) python -m dvc repro $(ARGS)
	@echo; echo "Done. Look at reports/site/index.html"

train-parallel: environment ## train the resolutions side by side, one per GPU (ARGS="--at-once 2")
	@$(IN_VENV) python -m stages.ready
	@$(IN_VENV) python -m stages.train_parallel $(ARGS)

compare: environment ## show what differs between two commits on one page (A=HEAD B=workspace)
	@$(IN_VENV) python -m stages.compare --out .work/compare $(or $(A),HEAD) $(or $(B),workspace) $(ARGS)

test: environment ## run all tests (ARGS="-k merge" for some)
	@$(IN_VENV) python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

check: environment ## ruff and mypy
	@$(IN_VENV) ruff check .
	@$(IN_VENV) ruff format --check .
	@$(IN_VENV) mypy

profile: ## put profiles/NAME.yaml in force as params.yaml (NAME=sd15; FORCE=1 drops local edits)
	@if [ -z "$(NAME)" ] || [ ! -f "profiles/$(NAME).yaml" ]; then \
	  echo "make profile: there is no profiles/$(NAME).yaml. Choose one:" >&2; \
	  for file in profiles/*.yaml; do echo "  make profile NAME=$$(basename "$$file" .yaml)" >&2; done; \
	  exit 1; \
	fi
	@known=; \
	[ -f params.yaml ] || known=1; \
	for file in profiles/*.yaml; do ! cmp -s "$$file" params.yaml || known=1; done; \
	if git ls-files --error-unmatch params.yaml >/dev/null 2>&1 && git diff --quiet HEAD -- params.yaml 2>/dev/null; then known=1; fi; \
	if [ -z "$$known" ] && [ "$(FORCE)" != 1 ]; then \
	  echo "make profile: params.yaml holds edits that are neither committed nor a profile; they would be lost." >&2; \
	  echo "Commit them, keep a copy, or drop them: make profile NAME=$(NAME) FORCE=1" >&2; \
	  exit 1; \
	fi; \
	cp "profiles/$(NAME).yaml" params.yaml; \
	echo "params.yaml is now profiles/$(NAME).yaml."; \
	if grep -n "to be filled in" params.yaml; then echo "Fill in these lines and put your files in place (README, Use it). Then: make run"; \
	else echo "Next: make run"; fi

pull: environment ## fetch the finished recipe from the remote, hash it, put it in place (REMOTE=name)
	@$(IN_VENV) python -m stages.ready
	@$(IN_VENV) python -m stages.share pull $(TO_SHARE)

push: environment ## upload outs and runs; mend what the remote lost (REMOTE=name; VERIFY=content reads all)
	@$(IN_VENV) python -m stages.share push $(TO_SHARE)

verify-remote: environment ## read all of the remote; name and mend what is amiss (REMOTE=name; VERIFY=size lists)
	@$(IN_VENV) python -m stages.share verify $(TO_SHARE)

resolve: environment ## after a merge: name conflicts in params.yaml, put dvc.lock together
	@$(IN_VENV) python -m stages.resolve

verify: environment ## read all of DVC's cache here; name what a disk spoilt and mend it
	@$(IN_VENV) python -m stages.verify_cache

faults: environment ## kill the recipe at random moments, 20 rounds (ROUNDS=n), or its two longest stages alone (KILLS=200)
	@$(IN_VENV) python -m $(if $(KILLS),tests.benchmarks.faults --kills $(KILLS),tests.benchmarks.fault_rounds $(if $(ROUNDS),--rounds $(ROUNDS)))

# DVC ignores a folder that is another DVC repository, even where its own stages depend on it. So
# models/base is one only while its pipeline runs; its cache waits in .work meanwhile.
base: environment ## make the mini model anew (for maintainers with a GPU; ARGS="-s package" for one stage)
	@npm ci --silent --prefix models/base
	@mkdir -p .work; if [ -d .work/base.dvc ]; then mv .work/base.dvc models/base/.dvc; fi
	@trap 'mv "$(CURDIR)/models/base/.dvc" "$(CURDIR)/.work/base.dvc"' EXIT; cd models/base; \
	  export PATH="$(CURDIR)/$(VENV)/bin:$$PATH"; \
	  [ -d .dvc ] || python -m dvc init --quiet --subdir; \
	  python -m dvc repro $(ARGS); status=$$?; cd ../..; exit $$status

plots: environment ## make the page of `dvc plots` anew, with its scripts inside (for maintainers; needs npm)
	@npm install --silent --no-package-lock --prefix .dvc/plots
	@$(IN_VENV) python -m stages.plots_page .dvc/plots

lock: ## make both locks anew from requirements.in (needs uv; settings in pyproject.toml)
	@uv pip compile --quiet requirements.in --output-file requirements.txt $(ARGS)
	@{ echo "# Made by \`make lock\` from requirements.in: exact versions for Python 3.11 and newer, all platforms."; \
	  echo "# Packages of CUDA are left out on purpose (named at the end): torch's CUDA wheels bring their own,"; \
	  echo "# its CPU wheel needs none."; \
	  cat requirements.txt; } > requirements.txt.partial && mv requirements.txt.partial requirements.txt
	@{ echo "# Made by \`make lock\`: the versions of requirements.txt with the hashes of their files, but for torch,"; \
	  echo "# of which each platform has a build of its own. README, \"Share results\", says how to install by it."; \
	  uv pip compile --quiet requirements.in --constraint requirements.txt --generate-hashes --no-annotate \
	    --no-emit-package torch; } > requirements.hashes.txt.partial
	@mv requirements.hashes.txt.partial requirements.hashes.txt

# --strict: a package about which nothing can be learned fails the audit instead of passing it.
audit: ## ask PyPI for known vulnerabilities of the locked packages (needs uv and the network)
	@uvx pip-audit@2.10.1 --strict --no-deps --disable-pip --requirement requirements.txt $(ARGS)

clean: ## remove caches of Python and the tools; models, data, .work and DVC's cache stay
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -not -path '*/node_modules/*' -prune -exec rm -rf {} +

# Compares contents, not times: a checkout of another branch and back installs nothing.
environment:
	@if ! $(PYTHON_IN_VENV) -c '' 2>/dev/null; then \
	  for python in $(PYTHON); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found="$$python"; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "make: no Python 3.11 or newer among: $(PYTHON). Install one, or name it: make run PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	  fi; \
	  echo "Making $(VENV) with $$("$$found" --version)"; \
	  "$$found" -m venv --clear $(VENV) || exit 1; \
	fi
	@if ! cmp -s requirements.txt $(INSTALLED); then \
	  echo "Installing requirements.txt, once. torch is the large part; its size depends on the platform."; \
	  set -o pipefail; \
	  $(PYTHON_IN_VENV) -m pip install --disable-pip-version-check -r requirements.txt \
	    | awk '/Downloading .*[0-9] [MG]B\)/ { print "  " $$2, $$3, $$4; fflush() }' || exit 1; \
	  cp requirements.txt $(INSTALLED); \
	fi
