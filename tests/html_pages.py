"""HTML pages taken apart by tests."""

import re
from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """A page taken apart: its tables, names, links, and whether its tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.text, self.open, self.ids, self.links = text, [], [], []
        self.tables, self.heads, self.words = [], [], []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        held = dict(attrs)
        self.ids += [held["id"]] if "id" in held else []
        self.links += [held[name] for name in ("href", "src", "xlink:href", "action") if name in held]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append(["", held.get("data-value")])
        elif tag == "svg":
            assert held["role"] == "img"
            assert held["aria-label"]

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> without a beginning"
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


def checked(path):
    """The page of a file, once it is known to stand alone."""
    text = path.read_text(encoding="utf-8")
    found = Page(text)
    assert len(set(found.ids)) == len(found.ids)
    assert all(link.startswith(("#", "data:")) for link in found.links), found.links
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(found.ids)
    assert not re.search(r"https?:|@import|//\w+\.\w+/|<link|<iframe", text)
    assert len(text) < 3_000_000
    assert "Traceback" not in text
    assert not list(path.parent.glob("*.partial"))
    return found
