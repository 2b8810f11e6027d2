"""Prompts longer than a text encoder reads: two classes must not end in one embedding."""

from collections.abc import Mapping
from pathlib import Path

from online_aug.errors import UserError

SURELY_READ = 75
"""Characters, spaces left out, that are never more tokens than CLIP reads."""


def check_prompts(model: Path, prompts: Mapping[str, str]) -> None:
    """Raise if the text encoder of a model would read the same words for two classes.

    A tokenizer is loaded only if a prompt is long.

    Args:
        model: Directory of the model.
        prompts: Prompts by class.

    Raises:
        UserError: If so; names both classes.
    """
    if all(len("".join(prompt.split())) <= SURELY_READ for prompt in prompts.values()):
        return
    from transformers import CLIPTokenizer  # slow to import, rarely needed

    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer", local_files_only=True)
    seen: dict[tuple[int, ...], str] = {}
    for name, prompt in prompts.items():
        read = tuple(tokenizer(prompt, truncation=True)["input_ids"])
        if (other := seen.setdefault(read, name)) != name:
            raise UserError(
                f"classes must differ in what the model reads of their prompts, its first "
                f"{len(read)} tokens, got the same for {other!r} and {name!r}; rename their "
                "folders so that they differ early, or let tokens be learned by finetune.mode"
            )
