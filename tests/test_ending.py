"""How the program ends: one sentence and a code, at any moment, whatever is wrong with a file."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clues.cli.program import INTERRUPTED, run_to_exit
from clues.errors import DataError

BOTH = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


def ended(program, capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        run_to_exit(program, name="clues")
    return int(end.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), BOTH)
@pytest.mark.parametrize("becomes", [None, ImportError, SystemExit, DataError])
def test_a_signal_ends_with_one_sentence_whatever_a_library_makes_of_it(
    number, code, becomes, capsys
):
    before = signal.getsignal(number)

    def verb(**_):
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except KeyboardInterrupt:
            # Importing numpy gives an ImportError, typer an exit of its own.
            raise (becomes(130) if becomes else KeyboardInterrupt) from None

    assert ended(verb, capsys) == (code, f"{INTERRUPTED}\n")
    assert signal.getsignal(number) is before


def test_a_second_signal_does_not_spoil_the_last_words(capsys, monkeypatch):
    def write(text):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        written.append(text)

    def verb(**_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    written: list[str] = []
    monkeypatch.setattr(sys.stderr, "write", write)
    with pytest.raises(SystemExit) as end:
        run_to_exit(verb, name="clues")
    assert (end.value.code, written) == (143, [f"{INTERRUPTED}\n"])


def test_a_verb_that_ends_on_ctrl_c_by_itself_ends_well(capsys):
    def verb(**_):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            return

    run_to_exit(verb, name="clues")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (PermissionError(13, "Permission denied", "a/b"), 3, "a/b: Permission denied. Give"),
        (OSError(5, "Input/output error", "a\x1b[2J"), 3, r"a\u001b[2J: Input/output error."),
        (MemoryError(), 1, "not enough memory"),
        (DataError("x\u202e\x1b[31m[red]\ny"), 3, "x\\u202e\\u001b[31m[red]\ny"),
    ],
)
def test_what_a_user_can_mend_is_one_message_without_a_traceback(error, code, message, capsys):
    def verb(**_):
        raise error

    found, said = ended(verb, capsys)
    assert found == code
    assert f"clues: {message}" in said.replace("there is ", "")


def test_a_mistake_of_ours_keeps_its_traceback():
    def verb(**_):
        raise OSError("no file is named")

    with pytest.raises(OSError, match="no file"):
        run_to_exit(verb, name="clues")


@pytest.mark.parametrize(("number", "code"), BOTH)
def test_a_process_that_still_imports_ends_with_one_sentence(number, code, tmp_path):
    """Stopped in the middle of its imports, by a library that waits there."""
    (tmp_path / "typer.py").write_text(
        "import time\nprint('importing', flush=True)\ntime.sleep(60)\n"
    )
    path = [str(tmp_path), str(Path(__file__).parent.parent / "src")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-m", "clues", "version"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=env, text=True, **streams) as child:  # type: ignore
        assert child.stdout.readline() == "importing\n"
        child.send_signal(number)
        _, said = child.communicate(timeout=60)
    assert (child.returncode, said) == (code, f"{INTERRUPTED}\n")
