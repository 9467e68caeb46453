"""What an entry script prints and returns where something goes wrong."""

import pytest

from src.runtime.errors import InternalError, UserError, run_command


def ended(main, capsys):
    with pytest.raises(SystemExit) as end:
        run_command(main)
    return end.value.code, capsys.readouterr().err


def test_a_users_mistake_is_one_line(capsys):
    def main():
        raise UserError("a\nb.jpg: empty; fetch it again")

    assert ended(main, capsys) == (2, "error: a\\nb.jpg: empty; fetch it again\n")


def test_our_own_bug_says_so_and_keeps_its_cause(capsys):
    def main():
        try:
            {}["width"]
        except KeyError as e:
            raise InternalError.of(e, "reading image 3") from e

    status, told = ended(main, capsys)
    assert status == 1
    *before, last = told.splitlines()
    assert last.startswith("error: a fault of this program, not of your data: reading image 3: KeyError: 'width' (")
    assert "test_errors.py, line " in last
    assert '    {}["width"]' in "\n".join(before)
