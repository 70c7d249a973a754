"""From a model file to a graph and back: read and written whole, weights left where they lie."""
