"""Pure decisions: facts, policy and a clock go in, a status, events and actions come out. No kopf, no client, no I/O."""
