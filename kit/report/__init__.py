"""The report: one self-contained HTML page about everything a project has run.

``report`` writes the page about all runs, ``data_report`` the one about a table alone, ``batch_report``
makes the one about a batch run. Styles and plots stand in the page; it asks for nothing from anywhere.
"""

from __future__ import annotations

from kit.report.page import ReportResult, batch_report, data_report, report

__all__ = ["ReportResult", "batch_report", "data_report", "report"]
