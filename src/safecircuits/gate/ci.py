"""An audit for continuous integration: JUnit XML, which every CI shows, and SARIF, which GitHub's scanning reads."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

from safecircuits.base.version import __version__
from safecircuits.gate.auditing import Audit


def junit(audit: Audit) -> str:
    """JUnit XML with one test case a requirement.

    Examples:
        >>> found = sc.audit(model, model, malicious=malicious, over_rejection=over_rejection)
        >>> sc.gate.junit(found).splitlines()[1][:52]
        '<testsuites name="safecircuits audit" tests="3" fail'
    """
    counts = {"tests": str(len(audit.checks)), "failures": str(len(audit.failed)), "errors": "0"}
    root = ElementTree.Element("testsuites", {"name": "safecircuits audit", **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": f"{audit.models[0]} → {audit.models[1]}", **counts})
    for check in audit.checks:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": f"safecircuits.audit.{check.measure}", "name": check.requirement}
        )
        if not check.passed:
            failure = ElementTree.SubElement(case, "failure", {"message": _printable(str(check))})
            failure.text = _printable(str(check))
        ElementTree.SubElement(case, "system-out").text = _printable(str(check))
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def sarif(audit: Audit, artifact: str = "policy.yaml") -> str:
    """SARIF 2.1.0 with one rule a requirement and one result for each that is broken.

    Args:
        artifact: the file that results point to, which GitHub needs: the policy.

    Examples:
        >>> import json
        >>> found = sc.audit(model, sc.load_model("unaligned"), malicious=malicious)
        >>> [one["ruleId"] for one in json.loads(sc.gate.sarif(found))["runs"][0]["results"]]
        ['malicious_refused/max_fall']
    """
    rules = [{"id": _rule(c), "shortDescription": {"text": c.requirement}} for c in audit.checks]
    results = [
        {
            "ruleId": _rule(check),
            "level": "error",
            "message": {"text": str(check)},
            "locations": [{"physicalLocation": {"artifactLocation": {"uri": artifact}, "region": {"startLine": 1}}}],
        }
        for check in audit.failed
    ]
    driver: dict[str, Any] = {"name": "safecircuits audit", "version": __version__, "rules": rules}
    document = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _rule(check: Any) -> str:
    return f"{check.measure}/{check.rule}"


def _printable(text: str) -> str:
    """Without what XML cannot hold."""
    return "".join(c for c in text if c in "\n\t" or c.isprintable() or c.isspace())
