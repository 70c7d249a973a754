"""The PyTorch stage: the slim model, the search for what it keeps, and recovery of its accuracy."""
