"""Writes what docs/ and configs/ hold of the code: `make docs`; with --check, says what is stale and ends with 1 (`make lint`)."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from pipeline import cli, reference

ROOT = Path(__file__).resolve().parent.parent
MADE = "<!-- Made by `make docs` from the code; do not edit. -->\n\n"


def commands_text() -> str:
    """Markdown: the help of every command, as it prints it."""
    group = typer.main.get_command(cli.app)
    top = typer.Context(group, info_name="shardmill", terminal_width=100)
    parts = [f"# Commands\n\n```\n{group.get_help(top)}\n```\n"]
    for name, command in sorted(vars(group)["commands"].items()):
        context = typer.Context(command, info_name=name, parent=top, terminal_width=100)
        parts.append(f"## {name}\n\n```\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def made() -> dict[Path, str]:
    """Every file that is made from the code, with its text."""
    pages = {"stages": reference.stages_text(), "config": reference.config_text(), "commands": commands_text()}
    files = {ROOT / "docs" / "reference" / f"{name}.md": MADE + text for name, text in pages.items()}
    return {**files, ROOT / "configs" / "schema.json": reference.schema_text()}


def main(check: bool) -> int:
    files = made()
    stale = [path for path, text in files.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if check:
            print(f"{path.relative_to(ROOT)} is not what the code says: run `make docs` and commit it", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[path], encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
