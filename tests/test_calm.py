"""What libraries say about themselves does not stand among the lines of a verb."""

import subprocess
import sys


def test_no_library_talks_while_it_is_imported() -> None:
    """Of what a CPU would need for a kernel that is not used here, for one."""
    code = (
        "import logging; from clues.cli.calm import calm_imports; calm_imports();"
        "from clues.cli.program import app;"
        "log = logging.getLogger('bitsandbytes.backends.cpu.ops');"
        "import peft; log.warning('a kernel is missing'); log.error('an error')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "kernel" not in done.stderr
    assert "an error" in done.stderr


def test_a_name_of_the_library_comes_without_a_word_and_silences_nobody_after() -> None:
    code = (
        "import logging, clues; log = logging.getLogger('bitsandbytes.backends.cpu.ops');"
        "clues.score; log.warning('one word')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "one word\n"
