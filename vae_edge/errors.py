"""Everything vae-edge raises on purpose.

    VaeEdgeError
    ├── InputError              (ValueError)    an argument, an image or a data set cannot be used
    ├── BundleError             (ValueError)    a bundle or a run folder is damaged, foreign or too new
    ├── MissingDependencyError  (ImportError)   a package is not installed; the message says how to install it
    ├── DeviceError             (RuntimeError)  the device or its driver cannot do what was asked
    └── ParityError             (RuntimeError)  an exported model does not give the trained model's verdict

A message says what came, what was expected and what to do. The command line prints it without a traceback.
"""

from __future__ import annotations


class VaeEdgeError(Exception):
    """Base of every error that vae-edge raises on purpose."""

    exit_code: int = 1
    """Exit code of a command that ends with this error: 1 failed, 2 wrong usage, 3 a gate said no."""


class InputError(VaeEdgeError, ValueError):
    """An argument, an image or a data set cannot be used."""


class BundleError(VaeEdgeError, ValueError):
    """A bundle or a run folder is damaged, foreign or written by a newer version."""


class MissingDependencyError(VaeEdgeError, ImportError):
    """A package is not installed."""


class DeviceError(VaeEdgeError, RuntimeError):
    """The device, its driver or its runtime cannot do what was asked."""


class ParityError(VaeEdgeError, RuntimeError):
    """An exported model does not give the trained model's verdict."""

    exit_code = 3
