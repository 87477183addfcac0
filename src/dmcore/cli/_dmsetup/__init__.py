"""What dmsetup does: the same words, options, output and exit statuses, over our own ioctl core.

Each verb is a function of one module, which `commands` names and which is imported when it is asked for. Where the
real dmsetup gives up or keeps silent for no good reason we do not: docs/reference/dmcore.md lists these places.
"""

from __future__ import annotations
