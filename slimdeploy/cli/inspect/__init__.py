"""`slimdeploy inspect`: its verb, and what it is made of."""

from slimdeploy.cli.inspect.verb import inspect

__all__ = ["inspect"]
