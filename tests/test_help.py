"""The entry point: help without PyTorch, and exit codes."""

import subprocess
import sys

import pytest

from blora_nb.cli.commands import main


@pytest.mark.parametrize("command", ["", "train", "generate", "inspect", "export"])
def test_help_does_not_import_pytorch(command):
    code = (
        "import sys\nfrom blora_nb.cli.commands import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    typed = [*command.split(), "--help"]
    result = subprocess.run([sys.executable, "-c", code, *typed], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "usage: blora" in result.stdout


def test_main_returns_the_exit_code(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["blora", "inspect", str(tmp_path / "none.safetensors")])
    assert main() == 1
    assert capsys.readouterr().err.startswith("error: There is no file or folder")
