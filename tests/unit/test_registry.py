from __future__ import annotations

import subprocess
import sys

import pytest

import dmcore.targets
from dmcore.registry import find, targets
from dmcore.targets.linear import Linear


def test_finds_the_targets():
    assert {"delay", "dust", "error", "flakey", "linear", "log-writes", "striped", "zero"} <= set(targets())
    assert list(targets()) == sorted(targets())
    assert all(find(name) is kind for name, kind in targets().items())


@pytest.mark.parametrize(
    "name", ["", "nope", "log_writes", "_raw", "__init__", "../linear", "linear.py", "os"]
)
def test_finds_nothing_else(name):
    assert find(name) is None


def test_classes_come_in_by_attribute():
    assert dmcore.targets.Linear is Linear
    assert {"Linear", "LogWrites"} <= set(dir(dmcore.targets))
    for name in ("Nope", "linears", "Raw", "_Raw"):
        with pytest.raises(AttributeError):
            getattr(dmcore.targets, name)


def _modules_after(code: str) -> set[str]:
    code += "; import sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(run.stdout.split())


def test_importing_all_targets_imports_no_test_tools():
    loaded = _modules_after("import dmcore.registry; dmcore.registry.targets()")
    assert "dmcore.targets.flakey" in loaded
    assert not loaded & {
        "hypothesis",
        "pytest",
        "_pytest",
        "fcntl",
        "ctypes",
        "mmap",
        "numpy",
        "cryptography",
    }


def test_one_target_imports_no_other():
    loaded = _modules_after(
        "from dmcore.targets import Linear; import dmcore.registry; dmcore.registry.find('zero')"
    )
    assert {name for name in loaded if name.startswith("dmcore.targets.")} == {
        "dmcore.targets.linear",
        "dmcore.targets.zero",
    }
