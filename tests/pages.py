"""What a page of HTML has in it, read by the standard library's parser."""

from __future__ import annotations

from html.parser import HTMLParser

EMPTY = {"meta", "img", "br", "hr", "link", "input", "use", "path"}


class Page(HTMLParser):
    """tables: of each caption its rows, the headings first. texts: of each kind of tag. tags: (name, attributes)."""

    def __init__(self, text: str):
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.texts: dict[str, list[str]] = {}
        self.tags: list[tuple[str, dict[str, str]]] = []
        self._open: list[tuple[str, list[str]]] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "table":
            self._rows = []
        if tag == "tr":
            self._rows.append([])
        if tag not in EMPTY:
            self._open.append((tag, []))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        if tag in EMPTY:
            return
        opened, parts = self._open.pop()
        assert opened == tag, f"<{opened}> ended by </{tag}>"
        text = "".join(parts)
        self.texts.setdefault(tag, []).append(text)
        if tag in ("td", "th"):
            self._rows[-1].append(text)
        if tag == "caption":
            self._caption = text
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data):
        for _, parts in self._open:
            parts.append(data)

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]
