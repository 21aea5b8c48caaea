"""LaTeX of the catalogue's formulas as one line of text, for terminals.

Only what the formulas use is known; a formula with anything else stays LaTeX.
"""

from __future__ import annotations

import re

_MAYBE_SPACE = "\0"
_WORDS = {
    "alpha": "\N{GREEK SMALL LETTER ALPHA}",
    "beta": "β",
    "gamma": "\N{GREEK SMALL LETTER GAMMA}",
    "delta": "δ",
    "epsilon": "ε",
    "varepsilon": "ε",
    "lambda": "λ",
    "mu": "μ",
    "rho": "\N{GREEK SMALL LETTER RHO}",
    "sigma": "\N{GREEK SMALL LETTER SIGMA}",
    "phi": "φ",
    "pi": "π",
    "Delta": "Δ",
    "sum": "Σ",
    "ell": "l",
    "rVert": "‖",
    "rfloor": "⌋",
    "rceil": "⌉",
}
_CLOSING = ("rVert", "rfloor", "rceil")
_FUNCTIONS = ("ln", "log", "exp", "cosh", "tanh", "arctan", "max", "min")
_SIGNS = {
    "cdot": "·",
    "times": "·",
    "le": " <= ",
    "ge": " >= ",
    "ne": " != ",
    "in": " in ",
    "notin": " not in ",
    "neg": "not ",
    "cap": " ∩ ",
    "cup": " \N{UNION} ",
    "dots": "…",
    "quad": "\n",
    "lVert": "‖",
    "lfloor": "⌊",
    "lceil": "⌈",
    "left": _MAYBE_SPACE,
    "right": "",
    "\\": "; ",
    ",": " ",
    ";": " ",
}
_AS_IS = ("mathrm", "text")
_ACCENTS = {"hat": "\N{COMBINING CIRCUMFLEX ACCENT}", "bar": "\N{COMBINING MACRON}"}
_POWERS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")

_PART = re.compile(r"\\(?:[A-Za-z]+|.)|[A-Za-z]+|[0-9.]+|\s+|.", re.DOTALL)
_BRACKETED = r"\([^()]*(?:\([^()]*\)[^()]*)*\)"
_SIMPLE = re.compile(rf"√?(?:[\w.']*(?:{_BRACKETED})?|‖[^‖]*‖|\|[^|]*\|)[⁰¹²³⁴⁵⁶⁷⁸⁹]*")


class _UnknownLatexError(Exception):
    """Something that the formulas did not use so far."""


def plain_formula(latex: str) -> str:
    r"""A formula as text, or as it is where that cannot be done.

    Example:
        >>> plain_formula(r"1 - \frac{2\,TP + s_{nr}}{S + s_{dr}}")
        '1 - (2 TP + s_nr) / (S + s_dr)'
        >>> plain_formula(r"\unheard{x}")
        '\\unheard{x}'
    """
    try:
        text = _Reader(latex).read_until("")
    except _UnknownLatexError:
        return latex
    text = re.sub(rf"(?<=[\w)\]|]){_MAYBE_SPACE}", " ", text).replace(_MAYBE_SPACE, "")
    text = re.sub(r" +", " ", text)
    text = re.sub(r"(?<=[(\[]) | (?=[)\],;⌋⌉])", "", text)
    return "\n".join(line.strip() for line in text.splitlines())


class _Reader:
    """Reads LaTeX from left to right."""

    def __init__(self, latex: str) -> None:
        self.latex = latex
        self.position = 0

    def read_until(self, end: str) -> str:
        """Text up to a closing sign, or to the end."""
        parts: list[str] = []
        while self.position < len(self.latex):
            part = self.read_part()
            if part == end:
                return _joined(parts)
            if part[1:] in _CLOSING and parts and parts[-1].isspace():
                parts.pop()
            parts.append(self.read(part))
        if end:
            raise _UnknownLatexError
        return _joined(parts)

    def read_part(self) -> str:
        """The next command with its backslash, word, number, sign or spaces."""
        found = _PART.match(self.latex, self.position)
        if found is None:
            raise _UnknownLatexError
        self.position = found.end()
        return found.group(0)

    def read(self, part: str) -> str:
        """Text of a part and of what belongs to it."""
        if part.startswith("\\"):
            return self.read_command(part[1:])
        if part == "{":
            return self.read_until("}")
        if part in "_^":
            return self.read_script(part)
        if part == "&":
            return ", "
        return " " if part.isspace() else part

    def read_command(self, name: str) -> str:
        """Text of a command and its arguments."""
        if name in _WORDS:
            return _WORDS[name]
        if name in _FUNCTIONS:
            return self.read_function(name)
        if name in _SIGNS:
            self.skip_spaces()
            return _SIGNS[name]
        if name in _AS_IS:
            return self.read_argument()
        if name in _ACCENTS:
            return self.read_argument() + _ACCENTS[name]
        return self.read_construct(name)

    def read_function(self, name: str) -> str:
        """Text of a function's name, with brackets around a fraction that it is taken of."""
        following = self.latex[self.position :].lstrip()
        if following.startswith("\\frac"):
            return f"{name}({self.read_argument()})"
        if following.startswith("\\left"):
            self.read_argument()
        return name

    def read_construct(self, name: str) -> str:
        """Text of a fraction, a root or of cases."""
        if name in ("frac", "tfrac", "dfrac"):
            numerator, denominator = self.read_argument(), self.read_argument()
            slash = "/" if _is_simple(numerator) and _is_simple(denominator) else " / "
            return f"{_bracketed(numerator)}{slash}{_bracketed(denominator)}"
        if name == "sqrt":
            return f"√{_bracketed(self.read_argument())}"
        if name in ("begin", "end") and self.read_argument() == "cases":
            return "{ " if name == "begin" else " }"
        raise _UnknownLatexError

    def read_script(self, sign: str) -> str:
        """Text of a subscript or a power."""
        script = self.read_argument().strip()
        if sign == "^" and script.isdecimal():
            return script.translate(_POWERS)
        if re.fullmatch(r"[^\W_]+|[+*]|'+|\(.*\)", script):
            return f"{sign}{script}"
        return f"{sign}{{{script}}}" if sign == "_" else f"{sign}({script})"

    def read_argument(self) -> str:
        """Text of the next part, or of the next group in braces."""
        self.skip_spaces()
        part = self.read_part()
        if len(part) > 1 and not part.startswith("\\"):  # of x^ab only the a is raised
            self.position -= len(part) - 1
            part = part[0]
        return self.read(part)

    def skip_spaces(self) -> None:
        """Goes to the next part that is no space."""
        while self.latex[self.position : self.position + 1].isspace():
            self.position += 1


def _joined(parts: list[str]) -> str:
    text = ""
    for part in parts:
        starts = part == "Σ" or (len(part) > 1 and re.match(r"[^\W\d_]|√|\(", part))
        touches = re.search(r"[\w)\]}']$" if part != "Σ" else r"[\w)\]}'|]$", text)
        text += f" {part}" if starts and touches else part
    return text


def _is_simple(text: str) -> bool:
    return _SIMPLE.fullmatch(text.strip()) is not None


def _bracketed(text: str) -> str:
    return text.strip() if _is_simple(text) else f"({text.strip()})"
