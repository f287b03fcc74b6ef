"""Names of backends that others speak of; without loading any of them."""

AUTO = "auto"
NONE = "none"
CORES = "cores"
GREENCTX = "greenctx"
