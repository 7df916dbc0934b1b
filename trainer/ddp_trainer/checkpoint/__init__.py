"""What a run's state is, and how it becomes durable and is found again."""
