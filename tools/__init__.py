"""Scripts for people who work on slimdeploy: data, the demo, the tables."""
