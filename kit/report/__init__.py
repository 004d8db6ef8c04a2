"""The report: one self-contained HTML page about everything a project has run.

``report`` writes the page about all runs, ``data_report`` the one about a table alone, ``batch_report``
and ``export_report`` make those about one batch run and one export. Styles and plots stand in the page;
it asks for nothing from anywhere.
"""

from __future__ import annotations

from kit.report.page import ReportResult, batch_report, data_report, export_report, report

__all__ = ["ReportResult", "batch_report", "data_report", "export_report", "report"]
