"""`slimdeploy verify`: its verb, and what it is made of."""

from slimdeploy.cli.verify.verb import verify

__all__ = ["verify"]
