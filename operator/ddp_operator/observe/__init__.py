"""From the cluster to slim facts."""
