"""On-disk structures: bytes to values, no devices and no system calls but plain reads."""
