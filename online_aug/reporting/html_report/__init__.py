"""`report.html`: one or several runs on one page that loads nothing from elsewhere."""

from online_aug.reporting.html_report.write import REPORT_FILE, write_report

__all__ = ["REPORT_FILE", "write_report"]
