"""The command `epplan`: finds the verb, runs it, and turns what goes wrong into one line and an exit code.

Exit codes: 0 done, 1 infeasible request, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import errno
import gc
import importlib
import os
import signal
import sys
import warnings

import click

# verb -> module:command; loaded on use, so that `epplan --help` does not import the solvers
COMMANDS = {
    "accuracy": "app.commands.accuracy:accuracy",
    "app": "app.commands.app_:app",
    "calibrate": "app.commands.calibrate:calibrate",
    "diff": "app.commands.diff:diff",
    "evaluate": "app.commands.evaluate:evaluate",
    "export": "app.commands.export:export",
    "import": "app.commands.import_:import_",
    "lab": "app.commands.lab:lab",
    "permute": "app.commands.permute:permute",
    "plan": "app.commands.plan:plan",
    "routing": "app.commands.routing:routing",
    "run": "app.commands.run:run",
    "simulate": "app.commands.simulate:simulate",
    "topology": "app.commands.topology:topology",
    "validate": "app.commands.validate:validate",
    "watch": "app.commands.watch:watch",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the verbs in the order in which the help lists them."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import and return one verb."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        if not gc.isenabled():  # `main` put it off
            gc.freeze()  # what imports made lives until the end: the collector need not walk over it
            gc.enable()
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="epplan")
def cli() -> None:
    """Plan and run expert parallelism for Mixture-of-Experts models on your own cluster.

    \b
    The main path:
      epplan topology show hgx-h100:4
      epplan plan --model deepseek-v3 --cluster hgx-h100:4 --routing loads.json --slots-per-rank 9 -o plan.json
      epplan evaluate plan.json linear eplb --routing loads.json

    Results go to stdout, all else to stderr. Exit codes: 0 done, 1 infeasible request, 2 bad input.
    """


def main() -> None:
    """Run the command line; SIGTERM ends it as Ctrl-C does, so that a batch system too keeps the best plan so far."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    gc.disable()  # until the verb is imported: a tenth of a second of collections that find nothing
    warnings.filterwarnings("ignore", "Failed to kill subprocesses", UserWarning)  # joblib, of one not yet started
    try:
        _run()
    except (click.exceptions.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except RuntimeError as error:  # Python 3.11 wraps what comes while a class names its attributes
        if not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        _fail("interrupted", 130)
    finally:  # all is done and written: Python's own way out would answer a signal with a traceback
        for last in (signal.SIGINT, signal.SIGTERM):
            signal.signal(last, signal.SIG_IGN)


def _run() -> None:
    from topologies.errors import EpplanError  # noqa: PLC0415 - half a second of imports, in which Ctrl-C may come

    if sys.stdout is None:  # closed by the caller, as in `epplan ... >&-`
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - open until the process ends
    try:
        code = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except EpplanError as error:
        _fail(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except BrokenPipeError:  # the reader of our output left, as in `epplan ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except SystemExit as leaving:
        if isinstance(leaving.__context__, BrokenPipeError):  # Rich met it first, and left with 1
            sys.exit(0)
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _fail(f"the results cannot be written: {error.strerror}", 2)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    click.echo("epplan: " + " ".join(message.split()), err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
