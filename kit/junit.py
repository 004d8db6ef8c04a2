"""Gates as JUnit XML, which build servers show as tests: one test case for each gate.

Knows gate results alone. The elements and attributes are those that the common readers (Jenkins, GitLab,
pytest's xunit2 family) agree on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from kit.gates import GateResult

#: Characters XML 1.0 cannot hold, not even escaped.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(gates: Sequence[GateResult], *, suite: str) -> bytes:
    """Write gates as JUnit XML.

    Args:
        gates: One test case each, in this order.
        suite: What was judged, for example ``tabular@3``.

    Returns:
        A UTF-8 document. A gate that was not passed has a ``failure`` that says why.
    """
    n_failed = sum(not gate.passed for gate in gates)
    counts = {"tests": str(len(gates)), "failures": str(n_failed), "errors": "0"}
    root = ElementTree.Element("testsuites", {"name": "gates", **counts, "time": "0"})
    inside = ElementTree.SubElement(
        root, "testsuite", {"name": _text(f"gates of {suite}"), **counts, "skipped": "0", "time": "0"}
    )
    for gate in gates:
        case = ElementTree.SubElement(
            inside,
            "testcase",
            {"classname": _text(suite), "name": _text(f"{gate.kind} {gate.metric}"), "time": "0"},
        )
        said = _text(gate.describe())
        if gate.passed:
            ElementTree.SubElement(case, "system-out").text = said
        else:
            failure = ElementTree.SubElement(case, "failure", {"message": said, "type": gate.kind})
            failure.text = "\n".join(each for each in (said, _text(gate.reason)) if each)
    ElementTree.indent(root)
    written: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return written + b"\n"


def _text(value: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", value)
