"""The parts that the page is made of. What they take is text, which they escape, or parts, which they do not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template

# Of the page: first its mark, by which it is known again; then that it loads nothing and runs nothing.
MARK = "<!doctype html>\n<!-- jaxcnn report -->\n"
PAGE = Template("""\
$mark<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")


def page(title: str, parts: Iterable[str]) -> str:
    style = files("jaxcnn.report").joinpath("style.css").read_text()
    return PAGE.substitute(mark=MARK, title=escape(title), style=style, body="\n".join(parts))


def heading(text: str, level: int = 2) -> str:
    """One of level 2 has a name, which `contents` leads to."""
    name = f' id="{"-".join(re.findall("[a-z0-9]+", text.lower()))}"' if level == 2 else ""
    return f"<h{level}{name}>{escape(text)}</h{level}>"


def contents(parts: Iterable[str]) -> str:
    """Links to the headings of level 2 in these parts."""
    found = re.findall(r'<h2 id="(.*?)">(.*?)</h2>', "".join(parts))
    items = "".join(f'<li><a href="#{name}">{text}</a></li>' for name, text in found)
    return f'<nav aria-label="Contents"><ul class="key">{items}</ul></nav>'


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def columns(parts: Iterable[str]) -> str:
    """Side by side where they have room, else below each other."""
    return f'<div class="columns">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[str]], *, words: bool = False) -> str:
    """In a box of its own, in which it can be moved where it is wider than the page; the first of each row heads it."""
    kind = ' class="text"' if words else ""
    body = [[_heading("row", row[0]), *(f"<td{kind}>{escape(cell)}</td>" for cell in row[1:])] for row in rows]
    return framed(caption, headings, body)


def framed(caption: str, headings: Sequence[str], body: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are parts."""
    head = "".join(_heading("col", text) for text in headings)
    lines = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in body)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="{kind}">'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>"
    )


def row_heading(text: str) -> str:
    return _heading("row", text)


def figure(part: str, caption: str) -> str:
    return f"<figure>{part}<figcaption>{escape(caption)}</figcaption></figure>"


def image(source: str, text: str, size: tuple[int, int]) -> str:
    """source: a data URI. text: in place of the picture. size: width and height in pixels."""
    return f'<img src="{source}" alt="{escape(text)}" width="{size[0]}" height="{size[1]}">'


def key(entries: Iterable[tuple[str, str]]) -> str:
    """What the colours stand for: (colour, name)."""
    items = "".join(f'<li><span style="background:{colour}"></span>{escape(name)}</li>' for colour, name in entries)
    return f'<ul class="key">{items}</ul>'


def details(summary: str, part: str) -> str:
    """Closed until it is asked for."""
    return f"<details><summary>{escape(summary)}</summary>{part}</details>"


def _heading(scope: str, text: str) -> str:
    return f'<th scope="{scope}">{escape(text)}</th>'
