"""report.html: that it stands alone, says what report.json says, and takes no text for markup."""

import base64
import hashlib
import json
from html.parser import HTMLParser
from importlib.resources import files

import pytest
import report_of_a_broken_plugin as broken

from accel_conformance import report as reports
from accel_conformance.report.page import SCRIPTS, page


class Page(HTMLParser):
    """What a page has, as the browser's parser would see it."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.policy = [], {}, {}, ""
        self.inside = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.inside = tag
        self.texts.setdefault(tag, []).append("")
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value)
        if ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy = dict(attrs)["content"]

    def handle_data(self, data):
        if self.inside:
            self.texts[self.inside][-1] += data

    def handle_endtag(self, tag):
        self.inside = None

    @property
    def data(self):
        return json.loads(self.texts["script"][0])


@pytest.fixture
def found(broken_report):
    return broken_report[1]


@pytest.fixture
def shown(broken_report):
    return Page((broken_report[0] / "report.html").read_text("utf-8"))


def unpacked(data):
    """The cases of a page, as its script makes them."""
    shares = data["shares"]
    for row in data["rows"]:
        parts, numbers = row[: -1 - len(shares)], row[-1 - len(shares) :]
        case = {key: value for part in parts for key, value in data["parts"][part].items()}
        case["id"] = "/".join(filter(None, (case.pop("group"), case.pop("name"))))
        case["reproduce"] = case["reproduce"].replace("\0", case["id"])
        yield {**case, **dict(zip(["seconds", *shares], numbers, strict=True))}


def test_it_needs_nothing_beside_itself(shown):
    assert not {"link", "img", "iframe", "object"} & set(shown.tags)
    assert not {"src", "href", "srcset", "data"} & set(shown.attributes)
    (style,) = shown.texts["style"]
    assert "url(" not in style
    assert "@import" not in style
    _, script = shown.texts["script"]
    assert "http" not in script.replace("http://www.w3.org/2000/svg", "")  # a name, not a place


def test_its_policy_permits_its_own_style_and_script_alone(shown):
    (style,), (_, script) = shown.texts["style"], shown.texts["script"]

    def source(text):
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    rules = dict(rule.split(" ", 1) for rule in shown.policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["style-src"] == source(style)
    assert rules["script-src"] == source(script)


def test_it_says_what_the_json_says(shown, found):
    data = shown.data
    assert data["report"] == {key: value for key, value in found.items() if key != "cases"}
    assert data["selfTest"] == broken.SELF_TEST
    cases = list(unpacked(data))
    assert len(cases) == len(found["cases"]) == sum(found["totals"].values())
    for case, told in zip(cases, found["cases"], strict=True):
        assert set(case) == set(told)
        for key in set(told) - {"message"}:  # which broken rules and refusals say as well
            same = pytest.approx(told[key], rel=0.01) if isinstance(told[key], float) else told[key]
            assert case[key] == same
        assert case["message"] or not told["message"] or told["broken"] or told["refusals"]


def test_what_plugins_say_is_data(shown, found):
    assert found["plugin"]["vendor"] == broken.RUDE
    assert any(broken.RUDE in b["says"] for case in found["cases"] for b in case["broken"])
    assert shown.tags.count("script") == 2
    assert "img" not in shown.tags
    assert not any(broken.RUDE in text for texts in shown.texts.values() for text in texts)
    assert shown.data["report"]["plugin"]["vendor"] == broken.RUDE
    found = {**found, "plugin": {**found["plugin"], "backend": "</title><script>"}}
    assert "</title><script>" not in page(found)


def test_expectations_are_told_with_what_they_matched(found):
    expected = [case for case in found["cases"] if case["outcome"] == "expected"]
    assert expected
    assert {case["reason"] for case in expected} == {"the tail is lost; fixed in 0.3"}
    first, idle = found["expectations"]["entries"]
    assert first["cases"] >= len(expected)
    assert (first["outcome"], first["expires"]) == ("fail", "2999-06-30")
    assert idle["cases"] == 0
    assert "matches no case (left over)" in found["expectations"]["problems"][0]


def test_many_cases_make_a_small_file(found):
    """Twelve thousand, each with an id and figures of its own."""
    many = [
        {**case, "id": f"{case['id']}_{i}", "seconds": case["seconds"] + i / 100, "input": f"x {i}"}
        for i, case in enumerate(found["cases"] * (12_000 // len(found["cases"]) + 1))
    ]
    assert len(page({**found, "cases": many}).encode()) < 3_000_000


def test_a_self_test_has_a_page_without_a_report(tmp_path):
    (tmp_path / "self-test.json").write_text(json.dumps(broken.SELF_TEST))
    data = Page(reports.show(tmp_path).read_text("utf-8")).data
    assert data["report"] is None
    assert data["rows"] == []
    assert data["selfTest"] == broken.SELF_TEST


def test_no_script_is_forgotten():
    folder = files(reports).joinpath("html")
    assert {one.name for one in folder.iterdir() if one.name.endswith(".js")} == set(SCRIPTS)
