"""Loading the plugin is paid for by every pytest run there is: it brings in pytest and the standard library, no more."""

from __future__ import annotations

import subprocess
import sys

HEAVY = (
    "_ctypes", "cryptography", "ctypes", "dmcore", "dmcore.targets", "dmvm", "execnet", "fcntl", "hypothesis", "mmap",
    "numpy", "pexpect", "xdist",
)  # fmt: skip


def loaded_by(code):
    script = f"import sys; before = set(sys.modules)\n{code}\nprint(*sorted(set(sys.modules) - before))"
    run = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=120
    )
    return set(run.stdout.splitlines()[-1].split())


def test_the_plugin_brings_in_nothing_of_its_own():
    bare = loaded_by("import pytest; pytest.console_main")
    modules = loaded_by("import pytest, pytest_dm.plugin") - bare
    assert [name for name in HEAVY if name in modules] == []
    assert {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names) <= {"pytest_dm"}


def test_a_run_without_devices_neither(tmp_path):
    (tmp_path / "test_x.py").write_text("def test_x(): ...\n")
    code = (
        "import os, pytest\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "os.environ['PYTEST_DISABLE_PLUGIN_AUTOLOAD'] = '1'\n"
        "status = pytest.main(['-q', '-p', 'pytest_dm.plugin', '-W', 'error', 'test_x.py'])\n"
        "assert status == 0, status"
    )
    modules = loaded_by(code)
    assert "pytest_dm.plugin" in modules
    assert {name for name in HEAVY if name in modules} - {"fcntl", "mmap"} == set()


def test_every_public_module_has_a_list_of_names():
    code = (
        "import importlib, pkgutil, pytest_dm\n"
        "for found in pkgutil.walk_packages(pytest_dm.__path__, 'pytest_dm.'):\n"
        "    module = importlib.import_module(found.name)\n"
        "    assert all(hasattr(module, name) for name in module.__all__), found.name"
    )
    loaded_by(code)
