"""The target subsystem as the devices' consumer: loading it is one fuse, adding a device to it the other."""
