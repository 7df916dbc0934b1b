"""From decisions to the cluster."""
