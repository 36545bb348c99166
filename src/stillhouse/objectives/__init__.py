"""What is minimised, as pure functions: (student, teacher, ...) to one value per item, in nats, student first."""
