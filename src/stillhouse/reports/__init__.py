"""Readers of a run folder: the page, its JSON, and the card of an exported student. None of them imports torch."""
