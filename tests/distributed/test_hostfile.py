"""The file that names the machines of a run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_aug.distributed.cluster import read_hostfile
from online_aug.errors import UserError

NAMES = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,20}", fullmatch=True)


@given(hosts=st.dictionaries(NAMES, st.integers(1, 64), min_size=1))
def test_machines_come_in_the_order_of_the_file_with_their_ranks(tmp_path_factory, hosts):
    path = tmp_path_factory.mktemp("hosts") / "hostfile"
    lines = [f"  {name}   slots={slots} \n# a comment\n\n" for name, slots in hosts.items()]
    path.write_text("".join(lines))
    assert [*read_hostfile(path).items()] == [*hosts.items()]


def test_a_name_may_say_who_logs_in(tmp_path):
    (tmp_path / "hosts").write_text("me@node-a.example slots=8 # the first\n")
    assert read_hostfile(tmp_path / "hosts") == {"me@node-a.example": 8}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("node-a\n", "got 'node-a' in line 1 of "),
        ("node-a slots=2\nnode-b slots=two\n", "got 'node-b slots=two' in line 2 of "),
        ("node-a slots=0\n", "got 'node-a slots=0' in line 1 of "),
        ("node-a slots=2\nnode-a slots=2\n", "got 'node-a slots=2' in line 2 of "),
        ("-oProxyCommand=x slots=2\n", "got '-oProxyCommand=x slots=2' in line 1 of "),
        ("# nobody\n", "name at least one machine, .* got none in "),
        (None, "be a readable hostfile: .*No such file"),
    ],
)
def test_a_hostfile_that_is_none_is_one_line(tmp_path, text, line):
    path = tmp_path / "hosts"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=rf"^devices\.hostfile must .*{line}") as caught:
        read_hostfile(path)
    assert "\n" not in str(caught.value)
