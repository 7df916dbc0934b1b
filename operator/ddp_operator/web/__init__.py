"""What the operator shows over HTTP: the dashboard, metrics and probes. Read-only."""
