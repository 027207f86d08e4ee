"""``da3 completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from toolchain.cli.boundary import BoundedCommand
from toolchain.cli.options import json_option
from toolchain.cli.show import layout
from toolchain.cli.show.output import emit


@click.command(
    cls=BoundedCommand,
    epilog=layout.example(
        "da3 completion bash > ~/.local/share/bash-completion/completions/da3",
        "da3 completion zsh > ~/.zfunc/_da3",
        "da3 completion fish --program da3-export > ~/.config/fish/completions/da3-export.fish",
    ),
)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.option(
    "--program",
    type=click.Choice(("da3", "da3-export")),
    default="da3",
    show_default=True,
    help="Shells look for one script per program.",
)
@json_option
@click.pass_context
def completion(context: click.Context, shell: str, program: str, as_json: bool) -> None:
    """Print the completion script of a shell: domain names, options, files."""
    writer = get_completion_class(shell)
    assert writer is not None  # the choice holds click's own shells
    variable = f"_{program.upper().replace('-', '_')}_COMPLETE"
    made = writer(context.find_root().command, {}, program, variable)
    # Not .source(): bash's runs a bash to look at its version; the text is the same.
    script = made.source_template % made.source_vars()
    emit({"shell": shell, "program": program, "script": script}, [script], as_json=as_json)
