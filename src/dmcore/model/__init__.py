"""Device-mapper in userspace: block devices, targets and whole devices that behave as the kernel's do."""
