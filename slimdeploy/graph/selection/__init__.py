"""How a selection of tokens is written into a graph, and recognised in one."""
