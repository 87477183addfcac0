"""Plain `pytest` where this kernel cannot run device-mapper tests: they run in guests, everything else here.

Everything is collected and run as always; the tests that need a device are held back, and run at the end as an xdist
session of its own, in guests that collect the same files and keep to those tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_dm import backend, markers

if TYPE_CHECKING:
    from collections.abc import Generator

    from pytest_dm.options import Options

__all__ = ["PLUGIN_NAME", "AutoVm"]

PLUGIN_NAME = "dm-auto-vm"


class AutoVm:
    """Registered where `--dm-backend=auto` ends up with guests."""

    def __init__(self, config: pytest.Config, options: Options) -> None:
        self.config = config
        self.options = options

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Run what needs no device here, then the rest in guests."""
        held = [item for item in session.items if markers.uses_dm(item)]
        if not held or not self._applies():
            return (yield)
        everything = session.items
        session.items = [item for item in everything if not markers.uses_dm(item)]
        try:
            result = yield
        finally:
            session.items = everything
        if not session.shouldfail and not session.shouldstop:
            self._run_in_guests(session, len(everything) - len(held))
        return result

    def _applies(self) -> bool:
        """Whether guests are the best there is: no usable kernel here, and a guest kernel that is already fetched."""
        option = self.config.option
        distributed = bool(option.tx) if self.config.pluginmanager.hasplugin("xdist") else True
        if (
            option.collectonly
            or option.usepdb
            or distributed
            or backend.for_session(self.config).kind == "kernel"
        ):
            return False
        from dmcore.errors import DmError  # noqa: PLC0415 - only where it may come to guests
        from dmvm import machine, store  # noqa: PLC0415 - the same

        try:
            _, name = machine.choose("auto", None)
            return store.installed(name) is not None
        except DmError:
            return False

    def _run_in_guests(self, session: pytest.Session, tests_here: int) -> None:
        from xdist.dsession import DSession  # noqa: PLC0415 - only a session in guests pays for it

        from pytest_dm import vm_session  # noqa: PLC0415 - the same

        config = self.config
        vm_session.distribute(config, self.options)
        guests = vm_session.VmSession(config, self.options, tests_here=tests_here)
        config.pluginmanager.register(guests, vm_session.PLUGIN_NAME)
        guests.prepare()
        guests.announce()
        distributed = DSession(config)
        config.pluginmanager.register(distributed, "dsession")
        guests.spare_replacements()
        try:
            distributed.pytest_sessionstart(session)
        except (OSError, EOFError) as error:
            guests.give_up(error)
        guests.all_started()
        distributed.pytest_runtestloop()
