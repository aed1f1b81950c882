"""Reports: what they say, that they need nothing else, and that nothing in them can act or is secret."""

import dataclasses
import html.parser
import json
import pathlib
import shutil
import subprocess

import keras
import numpy as np
import pytest

import deepsigns_tf as ds

pytest.importorskip("jinja2", reason="reports need the extra `report`")

from deepsigns_tf.report import Event, Report  # noqa: E402

HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>.keras"


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text of each kind of tag."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self._open = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if self._open and data.strip():
            self.texts.setdefault(self._open[-1], []).append(" ".join(data.split()))


@pytest.fixture
def report(marked_model, owner_key, build_mlp):
    plain, key = ds.release(marked_model, owner_key)
    commitment = key.commitment()
    return Report(
        ds.verify(plain, key, commitment=commitment),
        HOSTILE,
        {"unmarked model": ds.verify(build_mlp(), key)},
        [
            Event("2026-11-25", "released", "ff" * 32, "the owner's word"),
            Event("2026-11-20", HOSTILE, commitment, "RFC 3161 time-stamp"),
        ],
        {"isolation of the suspect": HOSTILE},
        date="2026-11-26",
    )


def test_the_page_says_the_verdict_first_and_in_plain_words(report):
    page = Page(report.to_html())
    assert page.texts["h1"] == ["MARKED"]
    paragraphs = " ".join(page.texts["p"])
    assert "The owner's secret mark is in the model's weights." in paragraphs
    assert "less than once in 10^" in paragraphs and "its commitment was checked" in paragraphs
    assert page.texts["h2"] == [
        "When what was fixed",
        "How likely chance is",
        "Controls",
        "What was read",
        "What this does not show",
        "How to check it",
    ]
    dates = [text for text in page.texts["td"] if text.startswith("2026-11-")]
    assert dates == ["2026-11-20", "2026-11-25"]
    assert "not marked" in page.texts["td"]


def test_nothing_from_a_suspect_can_act_and_nothing_is_fetched(report):
    text = report.to_html()
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "img", "iframe", "object", "embed", "link", "form", "input", "button"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert attributes.get(name, "#").startswith("#"), (tag, attributes)
    assert "default-src 'none'" in text and "url(http" not in text and "@import" not in text
    assert text.count(HOSTILE) == 0 and text.count("&lt;script&gt;") == 3


def test_the_page_can_be_read_without_eyes_and_without_colours(report):
    page = Page(report.to_html())
    attributes = {}
    for tag, each in page.tags:
        attributes.setdefault(tag, []).append(each)
    assert attributes["html"] == [{"lang": "en"}] and len(attributes["h1"]) == 1 and len(attributes["main"]) == 1
    assert len(attributes["caption"]) == len(attributes["table"])
    assert all("scope" in each for each in attributes["th"])
    (svg,) = attributes["svg"]
    assert svg["role"] == "img" and "0 of 128 are wrong" in svg["aria-label"]
    assert attributes["a"][0] == {"class": "skip", "href": "#main"}


def test_the_same_report_is_the_same_bytes(report):
    assert report.to_html() == report.to_html()


def test_the_report_as_json(report):
    value = json.loads(json.dumps(report.to_dict()))
    assert value["verdict"]["marked"] and not value["controls"]["unmarked model"]["marked"]
    assert [event["date"] for event in value["timeline"]] == ["2026-11-20", "2026-11-25"]
    assert value["circumstances"]["Keras"] == keras.__version__


def test_nothing_secret_is_in_a_report(report, owner_key):
    seed = owner_key.seed
    bits = "".join(map(str, owner_key.signature("features").ravel()))
    for text in (report.to_html(), json.dumps(report.to_dict())):
        assert seed.hex() not in text and bits not in text


def test_other_outcomes_are_told_as_they_are(report, owner_key, build_mlp, blobs):
    unmarked = dataclasses.replace(report, verdict=report.controls["unmarked model"], controls={}, timeline=())
    text = unmarked.to_html()
    assert "was not found in the model" in text and "No dated statement was shown." in text and "None were run." in text
    late = dataclasses.replace(report, verdict=dataclasses.replace(report.verdict, committed=False))
    assert "This holds only if the key is older than the model, which was not shown." in late.to_html()


def test_answers_have_a_report_too(blobs):
    key = ds.OwnerKey.generate("ACME Vision").with_triggers("noise", 100, 10, blobs[0])
    labels = key.triggers.labels
    page = Page(Report(ds.verify_predictions(labels, key), "their server").to_html())
    assert "What was read" not in page.texts["h2"]
    assert any("100 of 100 answers are the secret ones" in text for text in page.texts["p"])
    some = ds.verify_predictions(np.where(np.arange(100) < 18, labels, (labels + 1) % 10), key)
    assert "was not found in the model" in Report(some, "their server").to_html()
    weak = dataclasses.replace(some, marked=True, log10_p_value=-2.0)
    assert "about once in 100 cases" in Report(weak, "their server").to_html()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1000, 390])
def test_a_browser_shows_the_page_without_a_word_of_complaint(report, width, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    (tmp_path / "report.html").write_text(report.to_html())
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = [chromium, *options.split(), "--disable-component-update", "--disable-sync", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},1500"]
    command += [f"--screenshot={tmp_path / 'page.png'}", (tmp_path / "report.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert pathlib.Path(tmp_path / "page.png").stat().st_size > 10_000
    assert "CONSOLE" not in shown.stderr
