"""Guests: kernels as data, fetched and cached; UML and QEMU machines; a relay for one command."""
