"""Puts the page together and writes it, one image at a time.

In the file come the markup, what is known of the whole data set, the scripts, and then each image's
elements, so that a browser shows the page while it still reads the images:

    <script type="text/plain" id="t7">        thumbnail of the image of rank 7, WebP in base64
    <script type="application/json" id="r7">  its regions
    <script type="application/json" id="v7">  its view, if it has one
"""

import hashlib
import json
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lossd_client.qa.files import whole
from lossd_client.qa.page.assets import markup, script, style
from lossd_client.qa.page.cards import Card, region_document


def write_page(
    path: Path,
    head: Mapping[str, Any],
    index: Iterable[Mapping[str, Any]],
    cards: Iterable[Card],
) -> None:
    """Writes the page.

    Args:
        path: the file; it is replaced when the new one is whole.
        head: what is known of the data set, see `head_of`.
        index: what is known of each image, the worst first, see `index_of`; read as it is written.
        cards: what is seen of each image, in the same order; likewise.
    """
    looks, acts = style(), script()
    parts = {
        "title": _text(f"{head['data_set']}: annotations to review"),
        "policy": _policy(looks, acts),
        "style": looks,
    }
    page = markup()
    for name, value in parts.items():
        page = page.replace(f"{{{{{name}}}}}", value)
    before, _, after = page.partition("{{data}}")
    with whole(path) as file:
        file.write(before)
        file.write(f'<script type="application/json" id="head">{_json(head)}</script>\n')
        file.write('<script type="application/json" id="index">[')
        file.writelines(_rows(index))
        file.write(f"]</script>\n<script>{acts}</script>\n")
        for card in cards:
            file.write(_card(card))
        file.write(after)


def _rows(entries: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """A list of the entries' values behind a list of their names, which are those of all."""
    for place, entry in enumerate(entries):
        if place == 0:
            yield _json(list(entry))
        yield f",\n{_json(list(entry.values()))}"


def _card(card: Card) -> str:
    regions = [region_document(region) for region in card.regions]
    elements = [_inert(f"r{card.rank}", "application/json", _json(regions))]
    if card.thumbnail is not None:
        text = b64encode(card.thumbnail).decode()
        elements.insert(0, _inert(f"t{card.rank}", "text/plain", text))
    if card.view is not None:
        view = _json(card.view.document())
        elements.append(_inert(f"v{card.rank}", "application/json", view))
    return "".join(elements)


def _inert(name: str, kind: str, text: str) -> str:
    return f'<script type="{kind}" id="{name}">{text}</script>\n'


def _policy(looks: str, acts: str) -> str:
    """Nothing runs but the page's own script, whatever a class or a file is called."""
    hashes = (b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (looks, acts))
    style_hash, script_hash = hashes
    return (
        f"default-src 'none'; style-src 'sha256-{style_hash}'; "
        f"script-src 'sha256-{script_hash}'; img-src data: blob:"
    )


def _json(value: object) -> str:
    """JSON in which no element can end."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
