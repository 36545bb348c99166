"""Methods that compare features; what they share is in `methods/layers.py`."""
