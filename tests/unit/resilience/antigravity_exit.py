"""A module whose import ends the process: the worst kind of preload."""

raise SystemExit(3)
