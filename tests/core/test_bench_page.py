"""bench.html: what the roofline picture shows, and that the page needs nothing outside it."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from accel.bench import page, roofline
from accel.bench.roofline import Dot, Picture, Roof

ROOF = Roof(memory=20.0, product=200.0)
SVG = "{http://www.w3.org/2000/svg}"


def contender(name, kind, gflops, **more):
    spread = {"median": 1.0, "low": 0.5, "high": 2.0}
    return {
        "name": name, "kind": kind, "seconds": spread, "gflops": gflops, "gbytes": 1.0,
        "share": 0.5, "binds": "memory", "ratio": None if kind == "serves" else spread,
        "peak_bytes": None, "rounds": [1.0, 2.0], **more,
    }  # fmt: skip


def case(op="linear", **more):
    return {
        "op": op, "variant": "", "size": "decode", "shape": "1x8 -> 8", "dtype": "float32",
        "backward": False, "from": "memory", "bytes": 100, "flops": 50, "goals": [],
        "refused": [{"name": "<lib>", "kind": "library", "reason": "not <installed>"}],
        "contenders": [contender("ours", "serves", 4.0), contender("slow", "plain", 1.0),
                       contender("<quick>", "library", 8.0)],
        **more,
    }  # fmt: skip


def report(*cases):
    measured = [("read", 20e9), ("copy", 15e9), ("float32", 200e9)]
    return {
        "machine": {
            "device": "a <chip>", "threads": 2, "torch": "2", "accel": "0", "platform": "x",
        },
        "method": {"time": "in <seconds>"},
        "ceilings": [{"what": w, "rate": r, "method": "a loop", "best": True} for w, r in measured],
        "cases": list(cases),
    }  # fmt: skip


def drawn(dots, width=1040, height=560):
    return ET.fromstring(Picture(ROOF, dots, width, height).svg("float32"))


def of_class(svg, name):
    return [e for e in svg.iter() if name in e.get("class", "").split()]


def test_a_dot_is_where_its_figures_are():
    dots = [Dot("a", "decode", 1.0, 10.0, 5.0, "tells"), Dot("b", "decode", 100.0, 100.0, None, "")]
    picture = Picture(ROOF, dots, 1040, 560)
    svg = drawn(dots)
    first, second = of_class(svg, "ours")
    assert float(first.get("cx")) == pytest.approx(picture.x(1.0), abs=0.06)  # of a pixel
    assert float(first.get("cx")) < float(second.get("cx"))
    assert float(first.get("cy")) > float(second.get("cy")), "faster is higher"
    (peer,) = of_class(svg, "peer")
    assert peer.get("cx") == first.get("cx")
    assert float(peer.get("cy")) > float(first.get("cy"))
    assert [t.text for t in svg.iter("title")] == ["tells", None]


def test_the_roof_bends_where_memory_and_products_meet():
    picture = Picture(ROOF, [Dot("a", "decode", 1.0, 10.0, None, "")], 1000, 500)
    (roof,) = of_class(ET.fromstring(picture.svg("float32")), "roof")
    points = [tuple(map(float, p.split(","))) for p in roof.get("points").split()]
    assert ROOF.ridge == 10.0
    assert points[1] == (round(picture.x(10.0), 1), round(picture.y(200.0), 1))
    assert points[1][1] == points[2][1]


@pytest.mark.parametrize("size", [page.WIDE, page.NARROW])
def test_labels_cover_neither_each_other_nor_a_dot(size):
    dots = [Dot(f"op {i}", "decode", 0.5 + i % 3 / 10, 1.0 + i, None, "") for i in range(12)]
    picture, labels = Picture(ROOF, dots, *size), []
    for text in of_class(drawn(dots, *size), "label"):
        x, bottom = float(text.get("x")), float(text.get("y")) + 3
        wide = roofline.LETTER * len(text.text)
        left = x - (wide if text.get("text-anchor") == "end" else 0)
        labels.append((left, bottom - roofline.LINE, left + wide, bottom))
    assert len(labels) > 8
    boxes = labels + [picture._box_of(dot) for dot in dots]
    assert not [
        (a, b) for i, a in enumerate(labels) for b in boxes[i + 1 :] if roofline._overlap(a, b)
    ]


def test_a_picture_has_the_fastest_peer_and_only_cases_that_a_ceiling_binds():
    cached = case("rms_norm")
    cached["contenders"][0]["share"] = None
    found = roofline.dots(report(case(), cached, case("x", bytes=None)), "float32")
    assert [(dot.name, dot.ours, dot.peer, dot.intensity) for dot in found] == [
        ("linear", 4.0, 8.0, 0.5)
    ]
    assert "<quick> 8" in found[0].tells
    assert not roofline.dots(report(case()), "bfloat16")
    wrong = case(contenders=[contender("slow", "plain", 1.0)])
    assert not roofline.dots(report(wrong), "float32"), "what serves was refused"


class Reader(HTMLParser):
    """Every element, and the text in it."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_shows_what_is_in_it_as_text_and_loads_nothing():
    goal = {"beside": "slow", "what": "time", "at_most": 1.03, "is": 1.5}
    text = page.page(report(case(goals=[goal])))
    read = Reader(text)
    shown = "".join(read.text)
    for said in ("a <chip>", "<quick>", "<lib>, linear: not <installed>", "in <seconds>"):
        assert said in shown
    assert "1.50 of the time of slow, at most 1.03 are promised: more than promised" in shown
    assert not {"script", "img", "link", "iframe"} & {tag for tag, _ in read.tags}
    assert not [a for _, attrs in read.tags for a in attrs if a in ("src", "href", "style")]
    (policy,) = (a["content"] for t, a in read.tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert len([tag for tag, _ in read.tags if tag == "svg"]) == 2, "one for desks, one for hands"


def test_a_run_whose_cases_no_ceiling_binds_has_no_picture():
    text = page.page(report(case(bytes=None)))
    assert "<svg" not in text
    assert re.search(r"<th[^>]*>linear", text)
