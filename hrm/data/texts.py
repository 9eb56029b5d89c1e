"""Accepted texts as hashes: whether a completion is one that was accepted for its prompt.

Knows texts, their normal form and their hashes; nothing of tokens, models or files. The check needs
no model, and nothing but white space, Unicode form and letter case escapes it. No text can be read
back from the hashes.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Annotated, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, StringConstraints, field_serializer

from schemas import TextCheck

HASH_CHARACTERS = 32
"""Length of a hash: 128 bits of SHA-256, so that no two of a billion texts collide."""

Hash = Annotated[str, StringConstraints(pattern=rf"^[0-9a-f]{{{HASH_CHARACTERS}}}$")]
"""A hash as files hold it."""


def normalised(text: str) -> str:
    """`text` without differences of Unicode form, letter case and white space.

    The result is in the Unicode form NFC, case folded, with single spaces between words and none at
    the ends. Empty for a text of white space alone.
    """
    folded = unicodedata.normalize("NFC", text).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def text_hash(text: str) -> str:
    """Hash of exactly this text: 32 hexadecimal characters."""
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_CHARACTERS]


class TextHashes(NamedTuple):
    """Hashes of a prompt and its completion: all that is kept of their texts.

    A text of white space alone has no normal form to be recognised by. The hash of its exact form
    takes that place, so that it equals only itself.
    """

    prompt: str
    """Hash of the normalised prompt."""
    completion: str
    """Hash of the exact completion."""
    normalised_completion: str

    @classmethod
    def of(cls, prompt: str, completion: str) -> Self:
        """Hash a prompt and its completion."""
        return cls(_normalised_hash(prompt), text_hash(completion), _normalised_hash(completion))


class AcceptedTexts(BaseModel):
    """The completions that were accepted for each prompt, as hashes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: Mapping[Hash, Mapping[Hash, Hash]]
    """By the hash of the normalised prompt: hashes of the exact accepted completions, each with
    that of its normalised form."""

    @classmethod
    def of(cls, pairs: Iterable[TextHashes]) -> Self:
        """The accepted texts with these hashes."""
        prompts: dict[str, dict[str, str]] = {}
        for pair in pairs:
            accepted = prompts.setdefault(pair.prompt, {})
            accepted[pair.completion] = pair.normalised_completion
        return cls(prompts=prompts)

    def has_prompt(self, prompt: str) -> bool:
        """Whether a completion was accepted for this prompt, or for one with the same normal
        form.
        """
        return _normalised_hash(prompt) in self.prompts

    @property
    def prompts_with_several(self) -> int:
        """The number of prompts with accepted completions of different normal forms."""
        return sum(len(set(accepted.values())) > 1 for accepted in self.prompts.values())

    def check(self, texts: TextHashes) -> TextCheck:
        """Compare a completion with those that were accepted for its prompt."""
        accepted = self.prompts.get(texts.prompt)
        if accepted is None:
            return TextCheck.UNKNOWN
        if texts.completion in accepted:
            return TextCheck.SAME
        if texts.normalised_completion in accepted.values():
            return TextCheck.NORMALISED
        return TextCheck.DIFFERENT

    def check_texts(self, prompt: str, completion: str) -> TextCheck:
        """`check` of the hashes of these texts. Those that it does not need are not computed."""
        accepted = self.prompts.get(_normalised_hash(prompt))
        if accepted is None:
            return TextCheck.UNKNOWN
        if text_hash(completion) in accepted:
            return TextCheck.SAME
        return self.check(TextHashes.of(prompt, completion))

    def common(self, other: Self) -> Self:
        """The completions that both accept, of the prompts for which there is one."""
        prompts = {}
        for prompt, accepted in self.prompts.items():
            theirs = other.prompts.get(prompt, {})
            both = {exact: form for exact, form in accepted.items() if exact in theirs}
            if both:
                prompts[prompt] = both
        return type(self)(prompts=prompts)

    @field_serializer("prompts")
    def _in_order(self, prompts: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
        # Sorted, so that equal texts give equal files.
        return {prompt: dict(sorted(prompts[prompt].items())) for prompt in sorted(prompts)}


def _normalised_hash(text: str) -> str:
    return text_hash(normalised(text) or text)
