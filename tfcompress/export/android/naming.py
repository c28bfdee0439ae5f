"""Names for Kotlin, Java, Gradle and resources, made of any text; texts escaped for them."""

from __future__ import annotations

import re
from xml.sax.saxutils import escape

_JAVA = """abstract assert boolean break byte case catch char class const continue default do double
else enum extends false final finally float for goto if implements import instanceof int interface
long native new null package private protected public return short static strictfp super switch
synchronized this throw throws transient true try void volatile while""".split()

# The hard keywords: no identifiers in any place.
_KOTLIN = """as break class continue do else false for fun if in interface is null object package
return super this throw true try typealias typeof val var when while""".split()
KEYWORDS = frozenset([*_JAVA, *_KOTLIN])
_SEGMENT = re.compile(r"[A-Za-z][A-Za-z0-9_]*")

# Classes that the generated files import under these names.
_TAKEN = ("CompiledModel",)
_LONGEST = 40


def check_package(package: str) -> str:
    """Check that a text is a package of Java and Kotlin and an application id of Android."""
    expected = "expected a Java package of two or more parts such as com.example.digits"
    if not isinstance(package, str):
        raise TypeError(f"{expected}; received {type(package).__name__}.")
    parts = package.split(".")
    wrong = next((part for part in parts if not _SEGMENT.fullmatch(part)), None)
    if wrong is not None:
        raise ValueError(
            f"{expected}; received {package!r}, in which {wrong!r} is no part of one. Use letters "
            "a to z, digits and _, a letter first in each part."
        )
    keyword = next((part for part in parts if part in KEYWORDS), None)
    if keyword is not None:
        raise ValueError(
            f"{expected}; received {package!r}, in which {keyword!r} is a keyword of Java or "
            f"Kotlin. Try {'.'.join(p + '_' if p in KEYWORDS else p for p in parts)}."
        )
    if len(parts) < 2:
        raise ValueError(f"{expected}; received {package!r}. Try com.example.{package.lower()}.")
    if parts[0] in ("java", "kotlin"):
        raise ValueError(
            f"{expected}; received {package!r}, which is Java's or Kotlin's own. Try com.{package}."
        )
    return package


def class_base(name: str) -> str:
    """Make the start of class names of any text: "mobilenet_v1-0.25" gives "MobilenetV1025"."""
    base = "".join(word[0].upper() + word[1:] for word in _words(name))[:_LONGEST]
    base = base.removesuffix("Model") or "Tflite"
    if not base[0].isalpha():
        base = f"Tflite{base}"
    return f"Tflite{base}" if f"{base}Model" in _TAKEN else base


def file_base(name: str) -> str:
    """Make the start of file names of any text: "My Model (1)" gives "my_model_1"."""
    return "_".join(word.lower() for word in _words(name))[:_LONGEST].strip("_") or "model"


def identifiers(names: list[str], otherwise: str) -> list[str]:
    """Make Kotlin identifiers of the names of tensors, each only once."""
    made: list[str] = []
    for name in names:
        words = _words(name) or [otherwise]
        text = words[0][0].lower() + words[0][1:] + "".join(w[0].upper() + w[1:] for w in words[1:])
        text = text[:_LONGEST] if text[0].isalpha() else f"{otherwise}{text}"[:_LONGEST]
        # `count` is a parameter of the generated functions.
        text = f"{text}_" if text in KEYWORDS or text == "count" else text
        number = 2
        unique = text
        while unique in made:
            unique, number = f"{text}_{number}", number + 1
        made.append(unique)
    return made


def kotlin_text(text: str) -> str:
    """Write a text as a Kotlin literal that holds it and nothing else."""
    units = text.encode("utf-16-be", "surrogatepass")
    made = ""
    for high, low in zip(units[::2], units[1::2], strict=True):
        code = high << 8 | low
        plain = 32 <= code < 127 and chr(code) not in '"\\$`'
        made += chr(code) if plain else f"\\u{code:04x}"
    return f'"{made}"'


def android_text(text: str) -> str:
    """Write a text as the content of a <string> resource.

    Quotes, apostrophes and backslashes are escaped as aapt asks for, as are @ and ?, which would
    start a reference, and blanks that it would take away.
    """
    made = "".join(f"\\{letter}" if letter in "\"'\\" else letter for letter in text)
    if made[:1] in ("@", "?"):
        made = f"\\{made}"
    made = re.sub(r"(?<=\s)\s|^\s|\s$", lambda blank: f"\\u{ord(blank[0]):04x}", made)
    return escape(made)


def _words(name: str) -> list[str]:
    return re.findall(r"[A-Za-z0-9]+", name)
