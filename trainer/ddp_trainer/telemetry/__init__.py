"""What can be seen of a run: progress, metrics, events, console."""
