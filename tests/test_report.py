"""Reports: what they say, that they need nothing else, and that nothing in them can act or is secret."""

import dataclasses
import datetime
import html.parser
import io
import json
import shutil
import subprocess

import keras
import numpy as np
import pytest

import deepsigns_tf as ds
from deepsigns_tf.files import file_digest
from tests.fixtures.make import FOLDER
from tests.test_secrecy import Scanner

pytest.importorskip("jinja2", reason="reports need the extra `report`")
pytest.importorskip("matplotlib", reason="reports need the extra `report`")

import matplotlib.image  # noqa: E402

from deepsigns_tf.report import AttackOutcome, Control, Event, Report  # noqa: E402

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
        [Control("unmarked model", ds.verify(build_mlp(), key))],
        [
            Event("2026-11-25", "released", "ff" * 32, "the owner's word"),
            Event("2026-11-20", HOSTILE, commitment, "RFC 3161 time-stamp"),
        ],
        {"the suspect's file, SHA-256": "ab" * 32},
        [AttackOutcome("90 % pruned", "yes", 0.91), AttackOutcome(HOSTILE, "removed", 0.9312)],
        {"isolation of the suspect": HOSTILE},
        date="2026-11-26",
    )


def test_the_page_says_the_verdict_first_and_in_plain_words(report):
    page = Page(report.to_html())
    assert page.texts["h1"] == ["MARKED"]
    paragraphs = " ".join(page.texts["p"])
    assert "The owner's secret mark is in the model's weights." in paragraphs
    assert "less than once in 10^" in paragraphs and "the key's commitment, which was checked" in paragraphs
    assert "All 1 controls came out as they must." in paragraphs
    assert page.texts["h2"] == [
        "When what was fixed",
        "How likely chance is",
        "Controls",
        "What was read",
        "What removes such a mark",
        "What this does not show",
        "How to check it",
    ]
    dates = [text for text in page.texts["span"] if text.startswith("2026-11-")]
    assert dates == ["2026-11-20", "2026-11-25"]
    assert "not marked" in page.texts["td"] and "ab" * 32 in page.texts["code"]
    fixed = "hard test, in which matching bits are counted; p is at most 10^-6.00. It is part of the commitment, and so was fixed with it."
    assert page.texts["dd"] == [fixed, "p was multiplied by 1 for the places in which the mark was looked for"]


def test_a_copy_of_a_release_is_told_in_plain_words(report):
    verdict = dataclasses.replace(report.verdict, copy_of=("1.0", HOSTILE))
    words = " ".join(Page(dataclasses.replace(report, verdict=verdict).to_html()).texts["p"])
    assert f"number for number, those that the owner had stated as release '1.0', {HOSTILE!r}." in words


def test_a_page_that_names_the_marked_layer_says_for_whom_it_is(report, blobs):
    key = ds.OwnerKey.generate("ACME Vision").with_triggers("noise", 100, 10, blobs[0])
    by_answers = Report(ds.verify_predictions(key.triggers.labels, key), "their server")
    for each, named in ((report, True), (by_answers, False)):
        texts = Page(each.to_html()).texts["p"]
        assert any("it is for the judge and the parties" in text for text in texts) == named


@pytest.mark.parametrize("accuracy", ["1", 1.5, -1, [1]])
def test_an_accuracy_that_is_none_is_refused(accuracy):
    with pytest.raises(ValueError, match=r"`accuracy`\. Expected a number in \[0, 1\] or None\. Received: accuracy="):
        AttackOutcome("prune", "yes", accuracy)


def test_attacks_that_removed_the_mark_come_first(report):
    page = Page(report.to_html())
    assert "Of 2 attacks on the marked model, 1 removed the mark and left the model useful." in page.texts["p"]
    words = ["REMOVED, the model stayed useful", "still found"]
    assert [text for text in page.texts["td"] if text in words] == words and "93.12" in page.texts["td"]
    with pytest.raises(
        ValueError, match=r"^Invalid value for argument `survived`\. Expected .* Received: survived='no'$"
    ):
        AttackOutcome("prune", "no")


def test_a_control_that_fails_is_told_at_the_top(report):
    failed = dataclasses.replace(report, controls=[Control("wrong key", report.verdict), *report.controls])
    (told,) = (text for text in Page(failed.to_html()).texts["p"] if "controls" in text)
    assert told.startswith("1 of 2 controls did NOT come out as they must: do not rely on this verdict")


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
    assert text.count(HOSTILE) == 0 and text.count("&lt;script&gt;") == 4


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
    assert value["verdict"]["marked"] and not value["controls"][0]["verdict"]["marked"]
    assert [each["survived"] for each in value["attacks"]] == ["removed", "yes"]
    assert [event["date"] for event in value["timeline"]] == ["2026-11-20", "2026-11-25"]
    assert value["circumstances"]["Keras"] == keras.__version__


def test_nothing_secret_is_in_a_report(report, owner_key):
    seed = owner_key.seed
    bits = "".join(map(str, owner_key.signature("features").ravel()))
    for text in (report.to_html(), json.dumps(report.to_dict())):
        assert seed.hex() not in text and bits not in text


def test_other_outcomes_are_told_as_they_are(report, owner_key, build_mlp, blobs):
    unmarked = dataclasses.replace(report, verdict=report.controls[0].verdict, controls=(), timeline=())
    text = unmarked.to_html()
    assert (
        "was not found in the model" in text
        and "No dated statement was shown." in text
        and "No controls were run." in text
    )
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
    silent = Report(ds.verify_predictions(np.full(100, -1), key), "their server").to_html()
    assert "So few questions were answered that nothing could have been proved. Nothing is decided." in silent
    begun = ds.Questioning(key).run(lambda inputs: np.zeros(len(inputs), int), max_queries=3)
    told = Report(begun, "their server").to_html()
    assert "Not all questions were asked, and those that were prove nothing. Nothing is decided." in told


# The program

FIXTURE = FOLDER / ds.__version__
CLAIM = {
    "model": str(FIXTURE / "marked.keras"),
    "owner_key": str(FIXTURE / "owner.key"),
    "evidence": str(FIXTURE / "evidence"),
    "suspect_since": datetime.datetime.now(datetime.UTC).isoformat(),
    "tsa_roots": str(FIXTURE / "root.pem"),
}


def attacked(folder, survived="removed"):
    result = {"command": "python -m scripts.attack", "date": "2026-11-26", "hardware": "2 cores"}
    rows = [
        {"attack": HOSTILE, "survived": survived, "accuracy": 0.97},
        {"attack": "JPEG", "survived": "not applicable"},
    ]
    (folder / "attacks.json").write_text(json.dumps(result | {"rows": rows}))
    return str(folder / "attacks.json")


def test_the_program_reports_on_a_claim_with_all_controls(tmp_path):
    pytest.importorskip("rfc3161_client", reason="evidence needs `deepsigns_tf[evidence]`")
    from scripts.report import Config, run

    config = Config(
        **CLAIM,
        output_dir=str(tmp_path / "report"),
        num_wrong_keys=2,
        unmarked=str(FIXTURE / "unmarked.keras"),
        held_out=str(FIXTURE / "held_out.npz"),
        attacks=attacked(tmp_path),
    )
    value = run(config)
    assert sorted(each.name for each in (tmp_path / "report").iterdir()) == ["report.html", "report.json"]
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == value
    assert value["verdict"]["marked"] and value["verdict"]["opened"]["releases"] == ["1.0"]
    found = [(each["name"], each["expected"], each["verdict"]["marked"]) for each in value["controls"]]
    assert found == [
        ("the suspect, wrong key 1", False, False),
        ("the suspect, wrong key 2", False, False),
        ("the suspect, inputs that were not trained on", True, True),
        ("unmarked model unmarked.keras", False, False),
    ]
    # What is expected otherwise is read otherwise in nothing: the owner's own level, places and corrections.
    for name in ("log10_alpha", "num_assignments", "seed_factor", "committed"):
        assert {each["verdict"][name] for each in value["controls"][:3]} == {value["verdict"][name]}
    assert (value["verdict"]["log10_alpha"], value["verdict"]["num_assignments"]) == (-6.0, 1)
    whats = [each["what"] for each in value["timeline"]]
    assert whats == [
        "Statement 1: the owner committed to the key",
        "Statement 2: release '1.0'",
        "The suspect exists",
        "The suspect was read for this report",
    ]
    assert value["timeline"][0]["date"].endswith(" UTC")
    digest = file_digest(FIXTURE / "marked.keras")
    assert value["hashes"]["the suspect's file, SHA-256"] == digest and len(value["hashes"]) == 6
    assert value["circumstances"]["the suspect ran"].endswith("files") and value["circumstances"]["hardware"]
    page = Page((tmp_path / "report" / "report.html").read_text())
    assert page.texts["h1"] == ["MARKED"] and "All 4 controls came out as they must." in page.texts["p"]
    scanner = Scanner(ds.OwnerKey.load(FIXTURE / "owner.key"), "features", 128)
    assert scanner.scan_folder(tmp_path / "report") == []


@pytest.mark.slow
def test_the_program_reports_on_answers(tmp_path):
    from scripts.report import Config, run

    claim = CLAIM | {"evidence": None, "tsa_roots": None, "by": "answers"}
    value = run(Config(**claim, output_dir=str(tmp_path), unmarked=str(FIXTURE / "unmarked.keras")))
    assert value["verdict"]["num_matches"] == 64 and not any(each["verdict"]["marked"] for each in value["controls"])
    assert len(value["controls"]) == 4 and not value["verdict"]["committed"]


@pytest.mark.parametrize("family", ["noise", "blends"])
def test_a_wrong_key_is_like_the_owners_but_for_the_secret(family, owner_key, blobs):
    from scripts.report import _wrong_key

    # A seed by which no two blends are the same: of 256 examples it happens at times, and is warned of.
    key = dataclasses.replace(owner_key, seed=bytes(32)).with_triggers(family, 40, 4, blobs[0])
    wrong = _wrong_key(key)
    assert wrong.seed != key.seed and wrong.key_inputs is key.key_inputs and wrong.derived_triggers.num_examples == 40
    assert (wrong.signature("features") != key.signature("features")).any()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"suspect_since": "yesterday"}, "Invalid value for flag `suspect_since`. Expected a date"),
        ({"suspect_since": "2999-01-01"}, "Invalid value for flag `suspect_since`. Expected a date that has come"),
        ({"held_out": "x_only.npz"}, "These are no inputs to read with. Expected the arrays x_test and y_test"),
        ({"held_out": "narrow.npz"}, "Received: {'x_test': (8, 3), 'y_test': (8,)} in "),
        ({"held_out": "narrow.npz", "by": "answers"}, "There are no other inputs to read with. "),
        ({"attacks": "x_only.npz"}, "This is no result of attacks. Expected the attacks.json"),
        ({"attacks": "empty.json"}, "This is no result of attacks. "),
        ({"attacks": "attacks.json"}, "Received: survived='perhaps'"),
    ],
)
def test_bad_settings_are_told_before_a_suspect_is_read(settings, told, tmp_path, monkeypatch):
    from scripts.report import Config, run

    def read(path):
        raise AssertionError("too late")

    monkeypatch.setattr(ds, "load_suspect", read)
    np.savez(tmp_path / "x_only.npz", x_test=np.zeros((8, 16)))
    np.savez(tmp_path / "narrow.npz", x_test=np.zeros((8, 3)), y_test=np.arange(8) % 4)
    (tmp_path / "empty.json").write_text("{}")
    attacked(tmp_path, "perhaps")
    files = {"held_out", "attacks"}
    settings = {name: str(tmp_path / value) if name in files else value for name, value in settings.items()}
    claim = {name: CLAIM[name] for name in ("model", "owner_key")}
    with pytest.raises(ValueError) as error:
        run(Config(**claim, output_dir=str(tmp_path / "report"), **settings))
    assert told in str(error.value) and not (tmp_path / "report").exists()


@pytest.mark.slow
@pytest.mark.parametrize("look", ["light", "dark", "phone", "print"])
def test_a_browser_shows_the_page_without_a_word_of_complaint(report, look, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    (tmp_path / "report.html").write_text(report.to_html())
    # No window is that narrow; a frame is.
    (tmp_path / "phone.html").write_text('<iframe src="report.html" width="390" height="1400"></iframe>')
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = [chromium, *options.split(), "--disable-component-update", "--disable-sync", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,1500"]
    # By another ending Chromium writes nothing.
    shot = tmp_path / ("page.pdf" if look == "print" else "page.png")
    command += [f"--{'print-to-pdf' if look == 'print' else 'screenshot'}={shot}"]
    command += ["--blink-settings=preferredColorScheme=0"] if look == "dark" else []
    page = tmp_path / ("phone.html" if look == "phone" else "report.html")
    shown = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=300)
    content = shot.read_bytes()
    assert "CONSOLE" not in shown.stderr
    assert len(content) > 10_000 and content.startswith(b"%PDF" if look == "print" else b"\x89PNG")
    if look in ("light", "dark"):
        corner = matplotlib.image.imread(io.BytesIO(content))[2, 2, :3]
        assert (corner > 0.9).all() if look == "light" else (corner < 0.2).all()
