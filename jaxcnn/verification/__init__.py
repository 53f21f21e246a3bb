"""Whether a hand-written backward pass is right, and if not, which mistake it makes."""
