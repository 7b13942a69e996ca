"""PURE. Words cut down to their stems, as Qdrant's text index does when it is made with a Snowball stemmer.

Promises: two words are alike here exactly when they are in Qdrant's engine. Its stemmers are of the Snowball version of
2018; those of snowballstemmer 2 agree with them in every language, but for the letter io of Russian, which did not
count as ie then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from types import MappingProxyType

# Names and codes that Qdrant takes.
LANGUAGES: Mapping[str, str] = MappingProxyType(
    {
        "ar": "arabic",
        "da": "danish",
        "de": "german",
        "el": "greek",
        "en": "english",
        "es": "spanish",
        "fi": "finnish",
        "fr": "french",
        "hu": "hungarian",
        "hy": "armenian",
        "it": "italian",
        "nl": "dutch",
        "no": "norwegian",
        "pt": "portuguese",
        "ro": "romanian",
        "ru": "russian",
        "sv": "swedish",
        "ta": "tamil",
        "tr": "turkish",
    }
)
_REMEMBERED_WORDS = 50_000
# Neither a vowel nor a part of any ending.
_OTHER_LETTER = "\ue000"


def stemmer(language: str) -> Callable[[str], str] | None:
    """The stemmer of a language by its name or code; None for one that is not known."""
    name = LANGUAGES.get(language.lower(), language.lower())
    return _stemmer(name) if name in LANGUAGES.values() else None


@lru_cache(maxsize=len(LANGUAGES))
def _stemmer(name: str) -> Callable[[str], str]:
    # Not `snowballstemmer.stemmer`: where PyStemmer is installed that is of another version.
    made_of = getattr(import_module(f"snowballstemmer.{name}_stemmer"), f"{name.capitalize()}Stemmer")

    def stem(word: str) -> str:
        # A stemmer keeps the word that it works on, and searches run in several threads.
        made = made_of()
        if name == "russian":
            return str(made.stemWord(word.replace("ё", _OTHER_LETTER))).replace(_OTHER_LETTER, "ё")
        return str(made.stemWord(word))

    return lru_cache(maxsize=_REMEMBERED_WORDS)(stem)
