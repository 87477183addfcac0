"""Options from the command line and from the ini file."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import pytest

from pytest_dm.options import Options

pytest_plugins = ["pytester"]


@pytest.fixture
def options(pytester):
    """Return the options for an ini file's settings and arguments."""

    def read(*arguments, **ini):
        lines = "".join(f"{name} = {value}\n" for name, value in ini.items())
        pytester.makeini(f"[pytest]\n{lines}")
        return Options.of(pytester.parseconfig(*arguments))

    return read


def test_defaults(options):
    assert options() == Options()
    assert not Options().wants_guests


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--dm-vm"], {"vm": "auto"}),
        (["--dm-vm=uml"], {"vm": "uml"}),
        (["--dm-vm=qemu"], {"vm": "qemu"}),
        (["--dm-backend=vm"], {"backend": "vm"}),
        (["--dm-backend=kernel"], {"backend": "kernel"}),
        (["--dm-kernel=uml-6.1", "--dm-kernel", "uml-7.2"], {"kernels": ("uml-6.1", "uml-7.2")}),
        (["--dm-require"], {"require": True}),
        (["--dm-keep"], {"keep": True}),
        (["--dm-timeout=2.5"], {"timeout": 2.5}),
    ],
)
def test_command_line(options, arguments, expected):
    assert options(*arguments) == dataclasses.replace(Options(), **expected)


def test_a_folder_behind_dm_vm_is_no_machine(pytester):
    folder = pytester.mkdir("tests")
    config = pytester.parseconfig("--dm-vm", str(folder))
    assert Options.of(config).vm == "auto"
    assert config.args == [str(folder)]


def test_ini(options):
    made = options(
        dm_backend="vm", dm_vm="uml", dm_kernel="uml-6.1 uml-7.2", dm_require="true", dm_keep="yes", dm_timeout="7",
        dm_artifacts="out",
    )  # fmt: skip
    assert (made.backend, made.vm, made.kernels) == ("vm", "uml", ("uml-6.1", "uml-7.2"))
    assert (made.require, made.keep, made.timeout) == (True, True, 7.0)
    assert made.artifacts == Path.cwd() / "out"


def test_the_command_line_wins(options):
    made = options(
        "--dm-vm=qemu", "--dm-timeout=3", "--dm-kernel=uml-6.1", dm_vm="uml", dm_timeout="7", dm_kernel="x"
    )
    assert (made.vm, made.timeout, made.kernels) == ("qemu", 3.0, ("uml-6.1",))


def test_kernels_in_the_ini_file_do_not_make_it_a_session_in_guests(options):
    assert not options(dm_kernel="uml-6.1").wants_guests
    assert options("--dm-vm", dm_kernel="uml-6.1").kernels == ("uml-6.1",)


def test_this_kernel_on_the_command_line_beats_guests_in_the_ini_file(options):
    assert not options("--dm-backend=kernel", dm_vm="uml", dm_kernel="uml-6.1").wants_guests


def test_they_can_be_sent(options):
    made = options("--dm-vm=uml", "--dm-artifacts=x")
    assert pickle.loads(pickle.dumps(made)) == made
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.vm = None


@pytest.mark.parametrize(
    ("arguments", "ini", "words"),
    [
        (["--dm-timeout=0"], {}, ["dm_timeout", "0"]),
        (["--dm-timeout=inf"], {}, ["dm_timeout", "inf"]),
        ([], {"dm_timeout": "soon"}, ["dm_timeout", "soon"]),
        ([], {"dm_backend": "cloud"}, ["dm_backend", "cloud", "auto, kernel, vm"]),
        ([], {"dm_vm": "xen"}, ["dm_vm", "xen", "qemu"]),
        (["--dm-backend=kernel", "--dm-vm"], {}, ["--dm-backend=kernel", "--dm-vm"]),
        (["--dm-backend=kernel", "--dm-kernel=x"], {}, ["--dm-backend=kernel", "--dm-kernel"]),
    ],
)
def test_what_means_nothing_is_one_clear_line(options, arguments, ini, words):
    with pytest.raises(pytest.UsageError) as refused:
        options(*arguments, **ini)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize("argument", ["--dm-vm=xen", "--dm-backend=cloud", "--dm-timeout=soon"])
def test_argparse_refuses_the_rest(pytester, argument):
    run = pytester.runpytest_subprocess(argument)
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stderr.fnmatch_lines([f"*{argument.partition('=')[0]}*"])
    assert "Traceback" not in run.stderr.str()


def test_help_names_them_all(pytester):
    run = pytester.runpytest_inprocess("--help")
    for option in ("backend", "vm", "kernel", "require", "keep", "artifacts", "timeout"):
        run.stdout.fnmatch_lines([f"*--dm-{option}*"])
        run.stdout.fnmatch_lines([f"*dm_{option} (*"])
