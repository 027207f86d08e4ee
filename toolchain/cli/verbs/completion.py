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
    assert writer is not None  # the shells of the choice are click's own
    variable = f"_{program.upper().replace('-', '_')}_COMPLETE"
    completion_class = writer(context.find_root().command, {}, program, variable)
    # For bash, .source() starts a bash to read its version. The text is the same without it.
    script = completion_class.source_template % completion_class.source_vars()
    emit({"shell": shell, "program": program, "script": script}, [script], as_json=as_json)
