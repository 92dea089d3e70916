"""Methods that mix samples."""

from . import objective, operation, pairing, ratio  # noqa: F401  (importing registers the methods)
