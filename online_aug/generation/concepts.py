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
    token: str
    prompt: str


def class_concepts(class_names: Sequence[str], metaclass: str) -> tuple[Concept, ...]:
    """Tokens `<class_0>`, `<class_1>`, ... with Diff-Mix's prompt template.

    The brackets keep one token from being the prefix of another, which diffusers would take for a
    token of several vectors.
    """
    concepts = []
    for number, name in enumerate(class_names):
        token = f"<class_{number}>"
        concepts.append(Concept(name, token, f"a photo of a {token} {metaclass}".strip()))
    return tuple(concepts)


def named_prompts(class_names: Sequence[str], metaclass: str) -> tuple[str, ...]:
    """Prompts with the class names themselves, for a model that is not fine-tuned."""
    spoken = (name.replace("_", " ") for name in class_names)
    return tuple(f"a photo of a {name} {metaclass}".strip() for name in spoken)


def is_finetuned(folder: Path) -> bool:
    """A whole fine-tuning result is here."""
    return (folder / CONCEPTS_FILE).is_file()
