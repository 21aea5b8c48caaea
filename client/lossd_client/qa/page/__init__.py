"""`report.html`: one page to review a scored data set with, that needs no server and no network.

`write_page` puts it together from parts that are kept apart here: `page.html`, the styles, and the
scripts, which are ES modules without a build step. Data follows the scripts, image by image, as
inert elements that are read when they are looked at.
"""

from lossd_client.qa.page.cards import THUMBNAIL_PX, Card, View, card_of, view_of
from lossd_client.qa.page.head import Settings, head_of, index_of, shown_regions
from lossd_client.qa.page.writer import write_page

__all__ = [
    "THUMBNAIL_PX",
    "Card",
    "Settings",
    "View",
    "card_of",
    "head_of",
    "index_of",
    "shown_regions",
    "view_of",
    "write_page",
]
