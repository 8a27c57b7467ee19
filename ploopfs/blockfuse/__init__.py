"""One disk, one FUSE connection of its own: the kernel's protocol of a regular file, served over a device."""
