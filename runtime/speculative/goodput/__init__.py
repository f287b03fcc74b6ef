"""How many tokens to propose to whom, so that a second yields the most tokens."""
