"""``da3 completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from toolchain.cli import layout
from toolchain.cli.boundary import BoundedCommand
from toolchain.cli.output import emit, json_option

PROGRAMS = ("da3", "da3-export")


@click.command(
    cls=BoundedCommand,
    epilog=layout.example(
        "da3 completion bash > ~/.local/share/bash-completion/completions/da3",
        "da3 completion zsh > ~/.zfunc/_da3",
        "da3 completion fish > ~/.config/fish/completions/da3.fish",
    ),
)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@json_option
@click.pass_context
def completion(context: click.Context, shell: str, as_json: bool) -> None:
    """Print the completion script of a shell.

    Domain names, options and files are completed, for da3 and da3-export.
    """
    writer = get_completion_class(shell)
    assert writer is not None  # the choice holds click's own shells
    root = context.find_root().command
    scripts = [
        writer(root, {}, program, f"_{program.upper().replace('-', '_')}_COMPLETE")
        for program in PROGRAMS
    ]
    # Not .source(): bash's runs a bash to look at its version; the text is the same.
    script = "\n".join(one.source_template % one.source_vars() for one in scripts)
    emit({"shell": shell, "script": script}, [script], as_json=as_json)
