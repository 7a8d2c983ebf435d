"""The language that a text is in, where it has enough words to tell."""

import re
from collections.abc import Sequence

from rrm_jax.errors import RrmError

_LEAST = 24  # bytes of letters: as many in English, eight characters in Chinese
_LONGEST = 4_000  # characters of a text that are looked at
_NO_WORDS = re.compile(
    r"```.*?(?:```|\Z)|\$\$.*?\$\$|\$[^$\n]*\$|\\\[.*?\\\]|\\\(.*?\\\)|\\begin\{(\w+\*?)\}.*?\\end\{\1\}"
    r"|\\[a-zA-Z]+|https?://\S+|`[^`\n]*`",
    re.S,
)


class LanguageFilter:
    """Tells texts in other languages than `languages` (ISO 639 codes), where that is sure to at least `confidence`.

    By py3langid's model for 131 languages. Maths, code and links are left out first; what then has few letters is of no
    language. Raises RrmError for a code that the model does not have.
    """

    def __init__(self, languages: Sequence[str], confidence: float):
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        self._identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        unknown = sorted(set(languages) - set(self._identifier.labels))
        if unknown or not languages:
            raise RrmError(
                f"{', '.join(unknown) or '(none)'}: no language known here; there are "
                + ", ".join(sorted(self._identifier.labels))
            )
        self._languages, self._confidence = frozenset(languages), confidence

    def other(self, text: str) -> tuple[str, float] | None:
        """The other language that the text is in, and how sure that is; None where it may be one of the languages."""
        words = _NO_WORDS.sub(" ", text[:_LONGEST])
        letters = "".join(character for character in words if character.isalpha())
        if len(letters.encode("utf-8")) < _LEAST:
            return None
        language, sure = self._identifier.classify(words)
        return (language, float(sure)) if language not in self._languages and sure >= self._confidence else None
