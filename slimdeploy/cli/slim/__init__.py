"""`slimdeploy slim`: its verb, and what it is made of."""

from slimdeploy.cli.slim.verb import slim

__all__ = ["slim"]
