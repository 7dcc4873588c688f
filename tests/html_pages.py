"""Parser of HTML pages for tests."""

import re
from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Parsed page: tables, ids, links and words. Raises if the tags are not balanced."""

    def __init__(self, text):
        super().__init__()
        self.text, self.open, self.ids, self.links = text, [], [], []
        self.tables, self.heads, self.words = [], [], []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes[name] for name in ("href", "src", "xlink:href", "action") if name in attributes]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append(["", attributes.get("data-value")])
        elif tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> without a start tag"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"th", "td"} & set(self.open):
            self.tables[-1][-1][-1][0] += data
        if not {"script", "style", "svg"} & set(self.open):
            self.words.append(data)

    def column(self, table, head):
        heads, *rows = self.tables[table]
        at = [text for text, _ in heads].index(head)
        return [row[at] for row in rows]


def read_page(path):
    """Parse a file, and check that the page is self-contained."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert len(set(page.ids)) == len(page.ids)
    assert all(link.startswith(("#", "data:")) for link in page.links), page.links
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(page.ids)
    assert not re.search(r"https?:|@import|//\w+\.\w+/|<link|<iframe", text)
    assert len(text) < 3_000_000
    assert "Traceback" not in text
    assert not list(path.parent.glob("*.partial"))
    return page
