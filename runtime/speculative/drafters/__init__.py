"""Guessing next tokens: from the sequence, from earlier outputs, from what the model said."""
