"""JUnit XML, held against the rules that Jenkins' xunit schema and pytest's xunit2 family share."""

from __future__ import annotations

from xml.dom import minidom
from xml.etree import ElementTree

from kit.gates import GateResult
from kit.junit import junit_xml

GATES = (
    GateResult("auc", 0.91, 0.9, passed=True),
    GateResult("accuracy", 0.8, 0.95, passed=False),
    GateResult("f1_macro", None, 0.1, passed=False, kind="max_loss", reason='a "class" <is> & gone\x00'),
)
#: Element to the attributes it must have, those it may have, and the elements it may hold.
RULES: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": (set(), {"name", "tests", "failures", "errors", "time", "disabled"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests"},
        {"failures", "errors", "skipped", "time", "timestamp", "hostname", "id", "package", "disabled"},
        {"properties", "testcase", "system-out", "system-err"},
    ),
    "testcase": (
        {"name", "classname"},
        {"time", "assertions", "status", "file", "line"},
        {"skipped", "error", "failure", "system-out", "system-err", "properties"},
    ),
    "failure": (set(), {"message", "type"}, set()),
    "system-out": (set(), set(), set()),
}


def broken_rules(element: ElementTree.Element) -> list[str]:
    must, may, holds = RULES[element.tag]
    broken = [f"{element.tag} has no {name}" for name in sorted(must - set(element.attrib))]
    broken += [f"{element.tag} may not have {name}" for name in sorted(set(element.attrib) - must - may)]
    broken += [f"{element.tag} may not hold {inner.tag}" for inner in element if inner.tag not in holds]
    return broken + [each for inner in element for each in broken_rules(inner)]


def test_the_document_keeps_to_the_schema() -> None:
    assert broken_rules(ElementTree.fromstring(junit_xml(GATES, suite="tabular@3"))) == []


def test_each_gate_is_a_test_and_a_failure_says_why() -> None:
    suite = ElementTree.fromstring(junit_xml(GATES, suite="tabular@3"))[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "2", "0")
    cases = {case.get("name"): case for case in suite}
    assert set(cases) == {"floor auc", "floor accuracy", "max_loss f1_macro"}
    assert cases["floor auc"].find("failure") is None
    failure = cases["floor accuracy"].find("failure")
    assert failure is not None
    assert failure.get("message") == "accuracy is 0.8000, the gate 0.95"


def test_no_text_breaks_the_document() -> None:
    written = junit_xml(GATES, suite="m\ud800 <&>")
    document = minidom.parseString(written)  # a second parser, expat's own tree
    failures = document.getElementsByTagName("failure")
    assert 'a "class" <is> & gone\N{REPLACEMENT CHARACTER}' in failures[1].getAttribute("message")
    assert written.startswith(b"<?xml")


def test_without_gates_the_suite_is_empty_and_valid() -> None:
    root = ElementTree.fromstring(junit_xml((), suite="tabular@3"))
    assert broken_rules(root) == []
    assert root[0].get("tests") == "0"
