"""A fault-tolerant PyTorch DDP trainer; start reading at cli.py."""
