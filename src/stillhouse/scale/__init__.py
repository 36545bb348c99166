"""The same runs on more than one machine."""
