"""The page of a run stands alone and says what happened."""

import math
import re

from run_records import epoch, summary

from online_aug.reporting.html_report import REPORT_FILE, write_report
from online_aug.reporting.metrics import MetricsLog
from online_aug.reporting.run_directory import CONFIG_FILE


def page_of(tmp_path, **changes):
    log = MetricsLog(tmp_path, from_epoch=0)
    for number in range(3):
        log.append(epoch(number, **changes))
    log.close()
    (tmp_path / CONFIG_FILE).write_text("data:\n  source: <digits>\n")
    (tmp_path / "gallery.png").write_bytes(b"\x89PNG picture")
    write_report(tmp_path, summary(), tmp_path / "gallery.png")
    return (tmp_path / REPORT_FILE).read_text()


def test_the_page_loads_nothing_from_elsewhere(tmp_path):
    page = page_of(tmp_path)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "data:image/png;base64," in page


def test_names_and_values_from_files_are_escaped(tmp_path):
    assert "&lt;digits&gt;" in page_of(tmp_path)


def test_every_epoch_is_a_point_of_the_accuracy_curve(tmp_path):
    figure = re.search(r"validation top1.*?points=\"([^\"]*)\"", page_of(tmp_path))
    assert figure is not None
    assert len(figure.group(1).split()) == 3


def test_a_loss_that_is_no_number_leaves_no_mark_in_the_chart(tmp_path):
    assert "nan" not in page_of(tmp_path, train_loss=math.nan).lower()
