"""Ways to start the agents of a run."""
