"""Making images: the only place that knows diffusers, peft, transformers and xformers."""

import logging

# xformers says at every import that its own kernels do not fit this torch; which kernels are used
# is decided in `models.choose_attention`.
logging.getLogger("xformers").setLevel(logging.ERROR)
