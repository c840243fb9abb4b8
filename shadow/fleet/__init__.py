"""Many servers as one: whose robots are whose, and how a visitor of one reaches a robot of another."""
