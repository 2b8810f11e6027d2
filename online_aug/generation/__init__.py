"""Making images: from requests to finished, judged images, on one device."""

import logging

# xformers says at every import that its own kernels do not fit this torch. Which kernels are used
# is decided in `diffusion.loading.choose_attention`.
logging.getLogger("xformers").setLevel(logging.ERROR)
