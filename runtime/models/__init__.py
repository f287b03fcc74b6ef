"""Model families: one file per variant, made by `create_model`."""
