"""The only place with system calls: control node, loop devices, block ioctls, udev, kernel log."""
