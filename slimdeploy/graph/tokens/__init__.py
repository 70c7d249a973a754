"""Which tokens there are: the blocks of a graph, and what each of its tensors holds of them."""
