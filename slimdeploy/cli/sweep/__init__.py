"""`slimdeploy sweep`: its verb, and what it is made of."""

from slimdeploy.cli.sweep.verb import sweep

__all__ = ["sweep"]
