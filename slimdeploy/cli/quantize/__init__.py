"""`slimdeploy quantize`: its verb, and what it is made of."""

from slimdeploy.cli.quantize.verb import quantize

__all__ = ["quantize"]
