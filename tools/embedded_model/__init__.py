"""How the embedded diffusion models were trained."""
