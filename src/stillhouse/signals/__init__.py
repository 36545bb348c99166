"""Teacher signals that are computed once: what they are filed under, how they are kept, how exact they are."""
