"""Diffusion models on disk: loading, adapters, fingerprints."""

import logging


def _is_worth_saying(record: logging.LogRecord) -> bool:
    # At import: xformers built for another PyTorch (its kernels are tried before they are used),
    # DeepSpeed, which diffusers imports, on a machine without a GPU.
    return record.levelno >= logging.ERROR or "Setting accelerator" not in record.getMessage()


logging.getLogger("DeepSpeed").addFilter(_is_worth_saying)
logging.getLogger("xformers").addFilter(lambda record: record.levelno >= logging.ERROR)
