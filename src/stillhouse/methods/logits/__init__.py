"""Papers that distil what a network says: its logits."""
