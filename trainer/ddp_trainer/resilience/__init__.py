"""The elastic agent of a node, the barrier at which agents meet, and what is decided after a fault."""
