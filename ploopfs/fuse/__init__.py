"""The adapter: a tree of nodes, served by FUSE. The only package that imports pyfuse3; knows nothing of ploop."""
