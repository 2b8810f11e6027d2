"""How the embedded diffusion model is made: pictures, captions that name no class, training."""
