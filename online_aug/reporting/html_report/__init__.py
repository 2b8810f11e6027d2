"""`report.html`: one or several runs on one page that loads nothing from elsewhere."""

from online_aug.reporting.html_report.write import write_comparison, write_report
from online_aug.reporting.run_directory import REPORT_FILE

__all__ = ["REPORT_FILE", "write_comparison", "write_report"]
