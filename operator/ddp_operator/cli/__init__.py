"""`ddp runs` and `ddp explain`: the words that the operator's package adds to the `ddp` command."""
