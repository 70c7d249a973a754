"""`python -m slimdeploy`."""

from slimdeploy.cli import main

main()
