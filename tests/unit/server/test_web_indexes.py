"""What counts as a file or a directory in the index that a web server writes."""

from __future__ import annotations

import contextlib

import hypothesis
import pytest
from hypothesis import strategies as st

from tms_server.model import errors, source
from tms_server.repositories import calls, web

NGINX = """<html><head><title>Index of /digits/</title></head><body><h1>Index of /digits/</h1><hr><pre>
<a href="../">../</a>
<a href="1/">1/</a>                 21-Nov-2026 10:00       -
<a href="config.pbtxt">config.pbtxt</a>   21-Nov-2026 10:00      42
<a href="with%20space.bin">with space.bin</a>
</pre><hr></body></html>"""
APACHE = """<table><tr><th><a href="?C=N;O=D">Name</a></th><th><a href="?C=M;O=A">Last modified</a></th></tr>
<tr><td><a href="/models/">Parent Directory</a></td></tr>
<tr><td><a href="1/">1/</a></td></tr><tr><td><a href="config.pbtxt">config.pbtxt</a></td></tr>
<tr><td><a href="https://httpd.example/">a server</a></td></tr><tr><td><a name="x">no link</a></td></tr></table>"""
PYTHON = '<ul><li><a href="1/">1/</a></li><li><a href="./config.pbtxt">config.pbtxt</a></li></ul>'


def index(text: str, kind: str = "text/html; charset=utf-8") -> calls.Answer:
    return calls.Answer({"Content-Type": kind}, text.encode(errors="surrogatepass"))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (NGINX, ["1/", "config.pbtxt", "with space.bin"]),
        (APACHE, ["1/", "config.pbtxt"]),
        (PYTHON, ["1/", "config.pbtxt"]),
        ("", []),
    ],
)
def test_names_are_what_lies_right_below(text: str, names: list[str]) -> None:
    assert web._links(index(text)) == names


def test_what_is_no_index_is_no_directory() -> None:
    with pytest.raises(errors.NotFound, match="no directory index"):
        web._links(index("{}", "application/json"))


parts = st.lists(st.sampled_from(["..", ".", "/", "%2F", "%2e%2e", "a", "b/", "//", "?x", "#y", "\\", ":", "&#47;"]))


@hypothesis.given(st.lists(parts.map("".join), max_size=4))
def test_no_link_leads_out_of_its_directory(hrefs: list[str]) -> None:
    for name in web._links(index("".join(f'<a href="{href}">x</a>' for href in hrefs))):
        assert name.strip("/") not in {"", ".", ".."}
        assert "/" not in name.removesuffix("/")


markup = st.sampled_from(
    ["<a href=", '"', "//[", "<![", "<!x", "<!--", "--", ">", "]", "]]>", "<?", "a", "=", "&#x", "<!DOCTYPE"]
)


@hypothesis.given(st.text() | st.lists(markup).map("".join))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(errors.InvalidField):
        web._links(index(text))


@pytest.mark.parametrize(
    ("uri", "layout"),
    [
        ("file:///models/a.zip", source.Layout.TREE),
        ("s3://bucket/a.tar.gz", source.Layout.TREE),
        ("https://host/a.tar.gz", source.Layout.ARCHIVE),
        ("https://host/a.tgz", source.Layout.ARCHIVE),
        ("http://host/a.zip/", source.Layout.TREE),
        ("http://host/net.onnx", source.Layout.FILE),
    ],
)
def test_the_end_of_a_uri_tells_what_it_means(uri: str, layout: source.Layout) -> None:
    assert source.layout_of(uri) is layout
