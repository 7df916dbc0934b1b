"""What is trained: the Task protocol and the built-in tasks."""
