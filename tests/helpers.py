"""What several test files use: the command line, in its own process or in this one."""

import contextlib
import io
import os
import subprocess
import sys
import warnings
from unittest import mock

import numpy as np
import torch
from PIL import Image


def run(*arguments, **options):
    """`python -m blora_nb ARGUMENTS` in a process of its own, as a user starts it."""
    command = [sys.executable, "-m", "blora_nb", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def run_here(*arguments, cwd=".", env=None):
    """As `run`, in this process, which spares the seconds that importing PyTorch takes.

    It has no process's own things: signals, memory, what libraries log when they are imported.
    """
    from blora_nb.cli.commands import main

    def print_warning(message, category, filename, line_number, file=None, line=None):
        text = warnings.formatwarning(message, category, filename, line_number, line)
        sys.stderr.write(text)

    out, errors = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
        mock.patch.object(sys, "argv", ["blora", *map(str, arguments)]),
        mock.patch.dict(os.environ, env or {}),
        # main replaces it
        mock.patch.object(warnings, "formatwarning", warnings.formatwarning),
        warnings.catch_warnings(),
    ):
        # pytest keeps warnings to itself, the command line prints them
        warnings.showwarning = print_warning
        try:
            code = main()
        except SystemExit as stop:
            code = stop.code
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), errors.getvalue())


def succeeded(done):
    """The same finished command, which has returned 0."""
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def refused(done, *words, code=1):
    """The finished command said why it stopped in one line, without a traceback."""
    assert done.returncode == code, done.stdout + done.stderr
    for part in words:
        assert part in done.stderr
    assert "Traceback" not in done.stderr
    return done


def same_weights(one, two):
    """Whether two B-LoRAs are equal bit by bit."""
    return one.state_dict.keys() == two.state_dict.keys() and all(
        torch.equal(t, two.state_dict[name]) for name, t in one.state_dict.items()
    )


def pixels(path):
    """The bytes of a picture in a file, without its metadata."""
    return np.asarray(Image.open(path)).tobytes()
