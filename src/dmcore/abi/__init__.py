"""Byte layouts of the kernel interfaces: bytes to frozen values and back, no I/O."""
