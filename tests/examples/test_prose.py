"""Messages, docstrings, comments and documents are in plain English (CONTRIBUTING.md, "Prose").

A pattern finds only the constructions that are nearly always wrong; the rest needs a reader.
"""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: Where the rules hold.
PLACES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs",
    "spec",
    "contrib",
    "examples",
    "blobstore",
    "formats",
    "luks",
)

#: What to write instead, and the construction.
BANNED = {
    '"is not a", not "is no"': (
        r"(?<!there )\b(?:is|are|be|was|were) no "
        r"(?!longer\b|more\b|less\b|later\b|earlier\b|higher\b|lower\b)[a-z]"
    ),
    '"after" or "beyond", not "behind"': r"\bbehind\b",
    '"must" or "should", not "shall"': r"\bshall\b",
    'a noun, not "somebody" or "nobody"': r"\b(?:some|no|every)(?:body|one)\b",
    'a noun with "who", or "anyone who"': r"\bwhoever\b(?! (?:wrote|writes))",
    '"again", not "anew"': r"\banew\b",
    '"because" or "since", not "for"': (
        r", for (?:it|they|there|nothing|none|its|these|those|that) [a-z]"
    ),
    '"in this project", not "of ours"': r"\bof (?:ours|theirs)\b",
}

#: Sentences that are right although a pattern finds them.
ALLOWED = (
    # The rules themselves.
    '"X is not a whole number", never "X is no whole number"',
    'not "what is behind the header"',
    '"behind" is for physical places',
    'No "shall".',
    'Avoid "somebody" and "nobody", and "who" or "whoever" without a noun before it.',
    '"again", not "anew"',
    # A service that stands behind files: a place, not an order of bytes.
    "swtpm with a store behind its files",
)


def files() -> list[Path]:
    found: list[Path] = []
    for place in PLACES:
        path = ROOT / place
        if "*" in place:
            found += ROOT.glob(place)
        elif path.is_dir():
            found += [*path.rglob("*.py"), *path.rglob("*.md"), *path.rglob("*.asn1")]
        else:
            found.append(path)
    return sorted(found)


def prose(path: Path) -> list[tuple[int, str]]:
    """Return the texts in a file, with their line numbers; of a program, comments and strings."""
    source = path.read_text()
    if path.suffix != ".py":
        return list(enumerate(re.split(r"\n(?=\n|[-|#*]|\*\*)", source), 1))
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [(token.start[0], token.string) for token in tokens if token.type in kinds]


def faults(text: str) -> list[str]:
    """Return what is wrong with a text, each with the words that show it."""
    text = re.sub(r"\s*\n\s*(?:#:? ?)?", " ", text)
    for sentence in ALLOWED:
        text = text.replace(sentence, "")
    return [
        f"{advice}: …{text[max(0, hit.start() - 30) : hit.end() + 30]}…"
        for advice, pattern in BANNED.items()
        for hit in re.finditer(pattern, text, re.IGNORECASE)
    ]


def test_the_places_are_there() -> None:
    assert all(list(ROOT.glob(place)) for place in PLACES)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_is_plain(path: Path) -> None:
    assert [(line, fault) for line, text in prose(path) for fault in faults(text)] == []


@pytest.mark.parametrize(
    "text",
    [
        "The key is no whole number.",
        "the bytes behind the header",
        "The index shall be positive.",
        "Somebody holds the lock.",
        "whoever holds the lock",
        "The tables are made anew.",
        "It is refused, for it would overlap.",
        "an error of ours",
        "# a comment that\n# is no\n# statement",
    ],
)
def test_a_fault_is_found(text: str) -> None:
    assert len(faults(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "There is no header, and the volume has no tokens.",
        "It is no longer needed.",
        "The blob cannot be read.",
        "Names for these formats, for example",
    ],
)
def test_plain_english_is_not_a_fault(text: str) -> None:
    assert faults(text) == []
