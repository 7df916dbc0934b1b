"""An HTML parser that notes what a hostile text could have made of a page."""

from html.parser import HTMLParser

VOID = {"meta", "link", "input", "br", "img", "rect", "circle", "path", "polyline"}


class Page(HTMLParser):
    """`complaints` is empty for a page that is well nested, loads nothing from elsewhere and runs nothing but its one script."""

    def __init__(self, text, nonce="n0nce"):
        super().__init__(convert_charrefs=True)
        self.nonce, self.complaints, self.open, self.words, self.scripts, self.links = nonce, [], [], [], 0, []
        self.feed(text)
        self.close()
        self.complaints += [f"<{tag}> is not closed" for tag in self.open]

    def handle_starttag(self, tag, attrs):
        if tag in {"script", "style"}:
            self.scripts += tag == "script"
            self.check(dict(attrs).get("nonce") == self.nonce, f"<{tag}> without the nonce")
        self.check(tag not in {"iframe", "object", "embed", "base", "img"}, f"<{tag}>")
        for name, value in attrs:
            self.check(not name.startswith("on"), f"handler {name}")
            self.check(name != "style", "a style attribute, which the policy forbids")
            if name in {"href", "src", "action", "xlink:href"}:
                self.links.append(value)
                self.check(value == "data:," or (value.startswith("/") and not value.startswith("//")), f"{name}={value}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        self.check(self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}")
        if self.open:
            self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"script", "style"}:
            self.words.append(data)

    def check(self, is_good, complaint):
        if not is_good:
            self.complaints.append(complaint)

    @property
    def said(self):
        return " ".join(" ".join(self.words).split())
