"""One module per command: `add_to` describes its arguments, `run` carries it out."""
