"""Representative inputs: how they are drawn, and which are drawn for the demo's model."""
