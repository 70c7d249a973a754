"""`slimdeploy export`: its verb, and what it is made of."""

from slimdeploy.cli.export.verb import export

__all__ = ["export"]
