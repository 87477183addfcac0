# pytest-dm: `make demo` shows it, `make test` tests all of it.
PYTHON ?= python3
VENV ?= .venv
# Machine for the demo: auto, uml or qemu.
VM ?= auto
BIN = $(VENV)/bin
SUDO = $(if $(filter 0,$(shell id -u)),,sudo)

# What the examples need of the distribution; the guest kernels are fetched by pytest-dm itself, without root.
QEMU_PACKAGES = qemu-system-x86 gcc make libelf1 zstd
DEMO_PACKAGES = python3-venv e2fsprogs $(if $(filter qemu,$(VM)),$(QEMU_PACKAGES))
TEST_PACKAGES = $(DEMO_PACKAGES) $(QEMU_PACKAGES) dmsetup cryptsetup-bin xfsprogs btrfs-progs f2fs-tools udev thin-provisioning-tools lvm2

KERNEL_TESTS = $(BIN)/python tests/tools/once_more.py tests --ignore=tests/differential -m dm --dm-vm=uml --dm-kernel=uml-6.1 --dm-kernel=uml-6.12 --dm-kernel=uml-7.2 --dm-require --dm-timeout=280 -n 6

# Generated tables of every target: how many of each, and with how many changed lines, the campaign tries on each kernel.
EXAMPLES ?= 500
TARGET ?=

.PHONY: agreement campaign differential differential-campaign fuzz mutate support-table support-table-qemu demo test test-host test-kernels test-agree test-kills test-qemu test-wheel crash-campaign lint bench clean

demo: $(VENV)/.demo-$(VM)
	$(BIN)/pytest examples --dm-vm=$(VM)

test: lint test-host test-kernels test-qemu test-wheel

lint: $(VENV)/.test
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

# Pure tests, and those that boot guests of their own.
test-host: $(VENV)/.test
	$(BIN)/python tests/tools/once_more.py tests -m "not dm" -n 3 --dist load --maxschedchunk 2

# Every test that needs a kernel, on each of the three UML kernels; kinds of dm devices, four of a test at the most, are held against dmsetup before they go.
# Scripts drawn for the models, the same each time, on the newest.
test-kernels: $(VENV)/.test
	PYTEST_DM_AGREE=kinds $(KERNEL_TESTS)
	$(BIN)/python tests/tools/once_more.py tests/differential -m dm --dm-vm=uml --dm-kernel=uml-7.2 --dm-require --hypothesis-seed=1 -n 2
	$(BIN)/pytest examples --dm-vm=uml --dm-kernel=uml-7.2 --dm-require

# The same with every single device, and every test on every kernel.
test-agree: $(VENV)/.test
	PYTEST_DM_AGREE=every PYTEST_DM_EVERYWHERE=1 $(KERNEL_TESTS) --dm-timeout=1200

# A stack of 12 devices, killed at 200 moments of its life, without and with a udevd.
test-kills: $(VENV)/.test
	$(BIN)/pytest-dm vm run --kernel uml-7.2 -- $(BIN)/python tests/tools/kill_builds.py 200
	$(BIN)/pytest-dm vm run --kernel uml-6.12 -- $(BIN)/python tests/tools/kill_builds.py 200 --udevd

# What the kernel prints for generated tables, and which it takes, against the library: hours, or minutes with TARGET=flakey.
campaign: $(VENV)/.test
	PYTEST_DM_EXAMPLES=$(EXAMPLES) $(BIN)/pytest tests/targets/test_conformance.py -m "not dm" -k "$(if $(TARGET),$(TARGET),test)"
	PYTEST_DM_EXAMPLES=$(EXAMPLES) $(BIN)/pytest tests/targets/test_conformance.py -m dm --dm-vm=uml --dm-kernel=uml-6.1 --dm-kernel=uml-6.12 --dm-kernel=uml-7.2 --dm-timeout=3600 --junitxml=.campaign.xml -k "(takes_every_value or accept_the_same_lines) and ($(if $(TARGET),$(TARGET),test))"
	$(BIN)/python tests/tools/support_table.py .campaign.xml

# What each target does on each kernel, for docs/reference/support.md: the tests of targets, models and fixtures, noting what kernels do.
SUPPORT_TESTS = tests/targets $(wildcard tests/differential) $(wildcard tests/kernel/test_fixtures_*.py)
support-table: $(VENV)/.test
	PYTEST_DM_SUPPORT=1 $(BIN)/pytest $(SUPPORT_TESTS) -m dm --dm-vm=uml --dm-kernel=uml-6.1 --dm-kernel=uml-6.12 --dm-kernel=uml-7.2 --dm-timeout=600 -n 3 --junitxml=.support.xml
	$(BIN)/python tests/tools/support_table.py .support.xml

# The same on the distribution's kernels in QEMU, which have targets that user-mode Linux lacks, target by target: each is kept
# when it is done. Hours without KVM; minutes with TARGET=flakey.
support-table-qemu: $(VENV)/.test
	$(BIN)/python tests/tools/support_qemu.py $(TARGET)

# Generated scripts on kernel and models, every target alone and in stacks, others each time; `make test` tries the same few on one kernel.
differential: $(VENV)/.test
	$(BIN)/pytest tests/differential -m dm --dm-vm=uml --dm-kernel=uml-6.1 --dm-kernel=uml-6.12 --dm-kernel=uml-7.2

# Kernel and models on 20,000 generated scripts of each target; failing ones are kept in .hypothesis/examples.
differential-campaign: $(VENV)/.test
	$(BIN)/pytest tests/differential -m dm --dm-profile=campaign --dm-vm=uml --dm-kernel=uml-6.1 --dm-kernel=uml-6.12 --dm-kernel=uml-7.2 --dm-timeout=14400
	$(BIN)/pytest tests/differential -m dm --dm-profile=ci --dm-vm=qemu --dm-kernel=debian-6.1 --dm-kernel=debian-6.12 --dm-timeout=14400

# One formula of a model broken at a time; the differential tests must notice. Minutes, or seconds with TARGET=dust; for docs/reference/mutations.md.
mutate: $(VENV)/.test
	$(BIN)/python tests/tools/mutate.py $(TARGET)

# How often kernels and models do the same, for docs/reference/agreement.md; PROFILE=ci tries ten times as many examples, KERNELS="debian-6.1 debian-6.12" those.
PROFILE ?= dev
agreement: $(VENV)/.test
	$(BIN)/pytest tests/differential -m dm --dm-profile=$(PROFILE) --dm-vm=auto $(KERNELS:%=--dm-kernel=%) --dm-timeout=3600 --junitxml=.agreement.xml
	$(BIN)/python tests/tools/agreement_page.py .agreement.xml

test-qemu: $(VENV)/.test
	$(BIN)/pytest examples --ignore=examples/test_crash_programs.py tests/kernel/test_dmsetup_agrees.py tests/crash/test_order.py tests/crash/test_f2fs.py -m dm --dm-vm=qemu --dm-kernel=debian-6.1 --dm-kernel=debian-6.12 --dm-require --dm-timeout=280

# An hour and a half for each kernel: every planted bug and every correct twin with ten seeds, more generated workloads, on every kernel, or on those of KERNELS.
KERNELS ?= uml-6.1 uml-6.12 uml-7.2
crash-campaign: export PYTEST_DM_CRASH_SEEDS = 10
crash-campaign: export PYTEST_DM_CRASH_EXAMPLES = 40
crash-campaign: $(VENV)/.test
	$(BIN)/pytest tests/crash/test_programs.py tests/crash/test_foresight.py tests/crash/test_guests.py -m "not dm"
	$(BIN)/pytest tests/crash -m dm --dm-vm=uml $(KERNELS:%=--dm-kernel=%) --dm-timeout=3600 -rP -o faulthandler_timeout=0

# What reads hostile metadata, guided by coverage (atheris): SECONDS for each format, or for FORMAT=thin only. Failing inputs are kept in .fuzz.
SECONDS ?= 300
FORMAT ?= thin cache era clone snapshot writecache integrity raid verity luks1 luks2 lvm2 log-writes table
fuzz: $(VENV)/.test
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[fuzz]"
	for format in $(FORMAT); do $(BIN)/python tests/tools/fuzz.py $$format -max_total_time=$(SECONDS) || exit 1; done

test-wheel: $(VENV)/.test
	$(BIN)/python tests/tools/check_wheel.py

bench: $(VENV)/.test
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/crash.py
	$(BIN)/python benchmarks/verity.py
	$(BIN)/python benchmarks/volumes.py

$(VENV)/.demo-$(VM): pyproject.toml
	@$(call ensure,$(DEMO_PACKAGES))
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.demo-$(VM)
	@$(call ensure,$(TEST_PACKAGES))
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

# Install what is missing of the packages named, and say so.
ensure = missing=$$(for p in $(1); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ] && ! command -v apt-get >/dev/null; then echo "no apt-get here; install what this distribution calls:" $$missing; \
	elif [ -n "$$missing" ]; then echo "installing:" $$missing; \
	$(SUDO) apt-get update -qq; DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing; fi

clean:
	rm -rf $(VENV) dist build .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
