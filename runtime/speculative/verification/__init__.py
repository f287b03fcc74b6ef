"""Rules that decide which proposed tokens a sequence gets, without changing what it may get."""
