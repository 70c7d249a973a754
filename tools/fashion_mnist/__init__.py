"""Fashion-MNIST as a second data set: preparation and the table of accuracy."""
