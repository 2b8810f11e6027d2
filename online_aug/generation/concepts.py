"""How classes are called in prompts: a token of their own, or their name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CONCEPTS_FILE = "concepts.json"
"""Written last into a fine-tuning result; where it is, the result is whole."""


@dataclass(frozen=True)
class Concept:
    """How one class is called in prompts."""

    name: str
    token: str | None
    """None where the prompt holds the name."""
    prompt: str


def class_concepts(class_names: Sequence[str], metaclass: str) -> tuple[Concept, ...]:
    """Tokens `<class_0>`, `<class_1>`, ... with Diff-Mix's prompt template.

    The brackets keep one token from being the prefix of another, which diffusers would take for a
    token of several vectors.
    """
    tokens = [f"<class_{number}>" for number in range(len(class_names))]
    return tuple(
        Concept(name, token, _prompt(token, metaclass))
        for name, token in zip(class_names, tokens, strict=True)
    )


def named_concepts(class_names: Sequence[str], metaclass: str) -> tuple[Concept, ...]:
    """The class names themselves, for a model that has learned no tokens."""
    return tuple(
        Concept(name, None, _prompt(name.replace("_", " "), metaclass)) for name in class_names
    )


def is_finetuned(folder: Path) -> bool:
    """A whole fine-tuning result is here."""
    return (folder / CONCEPTS_FILE).is_file()


def _prompt(called: str, metaclass: str) -> str:
    return f"a photo of a {called} {metaclass}".strip()
