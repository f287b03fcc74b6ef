"""How a rank takes part in latent attention: one file per kind, made by `create_sharing`."""
