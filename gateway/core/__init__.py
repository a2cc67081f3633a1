"""The decisions, pure: events with a time go in, actions come out. No I/O, no clock, no randomness of its own."""
