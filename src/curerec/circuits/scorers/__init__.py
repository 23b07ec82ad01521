"""One scorer a file; the dict of them is in :mod:`curerec.circuits`."""
