"""slimdeploy: find the patches a vision transformer does not need, drop them, prove it."""

from importlib.metadata import version

__version__ = version("slimdeploy")
