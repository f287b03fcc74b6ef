"""How the ranks of a worker share latent attention: cuts, bases of the latents, merging."""
