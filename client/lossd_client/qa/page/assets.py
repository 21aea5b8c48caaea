"""The parts of the page that are the same for all data: markup, styles and scripts.

A script is an ES module that imports by name from its neighbours (`import { a } from "./b.js"`) and
exports declarations (`export function`, `export const`, `export class`). A page that is opened as a
file may not load modules, so they are put after each other in one scope, each behind those that it
imports from, without these two words. No two modules may therefore declare the same name.
"""

import re
from collections.abc import Iterable
from graphlib import TopologicalSorter
from importlib.resources import files
from typing import Final

_PACKAGE: Final = "lossd_client.qa.page"
_IMPORT: Final = re.compile(r'^import \{[^}]*\} from "\./([a-z_]+)\.js";\n', re.MULTILINE)
_EXPORT: Final = re.compile(r"^export (?=(?:async )?(?:function|const|class) )", re.MULTILINE)
_MAIN: Final = "main"


def markup() -> str:
    """The page without data, with `{{name}}` where something is put in."""
    return _text("page.html")


def style() -> str:
    """All styles, in the order of their files' names."""
    folder = files(_PACKAGE) / "style"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".css"))
    return "".join(_text(f"style/{name}") for name in names)


def script(wanted: Iterable[str] = (_MAIN,)) -> str:
    """Modules and what they import, in one scope.

    Args:
        wanted: modules by name; the whole page's by default.
    """
    sources: dict[str, str] = {}
    needs: dict[str, list[str]] = {}
    waiting = list(wanted)
    while waiting:
        name = waiting.pop()
        if name not in sources:
            sources[name] = _text(f"script/{name}.js")
            needs[name] = sorted(_IMPORT.findall(sources[name]))
            waiting += needs[name]
    order = TopologicalSorter({name: needs[name] for name in sorted(needs)}).static_order()
    return "".join(_EXPORT.sub("", _IMPORT.sub("", sources[name])) for name in order)


def _text(path: str) -> str:
    return (files(_PACKAGE) / path).read_text(encoding="utf-8")
