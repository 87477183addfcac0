"""Runs `dmcore` many times without paying for Python's start each time.

A small process that has loaded all of dmcore forks for each call; what is called is the real `main`, in a process of its
own, with arguments, environment, standard streams and exit status of its own. Requests and answers are lines of JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import subprocess
import sys
import traceback


class Forks:
    """The process, from the outside.

    Args:
        environment: Of each call.
    """

    def __init__(self, environment):
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def call(self, words, folder, stdin):
        """Call dmcore; return standard output, exit status and standard error."""
        self._process.stdin.write(json.dumps([words, str(folder), str(stdin)]) + "\n")
        self._process.stdin.flush()
        status = json.loads(self._process.stdout.readline())
        out, err = ((folder / name).read_bytes() for name in ("stdout", "stderr"))
        return out.decode("utf-8", "surrogateescape"), status, err.decode("utf-8", "replace")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


def _load_all():
    import dmcore.cli._dmsetup as package
    import dmcore.kernel.below
    import dmcore.kernel.libc  # noqa: F401

    for found in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{found.name}")


def _child(words, folder, stdin):
    status = 99
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        for target, path, how in (
            (0, stdin, os.O_RDONLY), (1, f"{folder}/stdout", flags), (2, f"{folder}/stderr", flags),
        ):  # fmt: skip
            fd = os.open(path, how, 0o600)
            os.dup2(fd, target)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(fd, mode) for fd, mode in enumerate("rww"))
        sys.argv = ["dmcore", *words]
        from dmcore.cli import main

        status = main()
    except SystemExit as left:
        status = left.code
    except BaseException:  # noqa: BLE001 - nothing may leave the fork
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _serve():
    _load_all()
    for line in sys.stdin:
        words, folder, stdin = json.loads(line)
        pid = os.fork()
        if not pid:
            _child(words, folder, stdin)
        _, waited = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(waited)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
