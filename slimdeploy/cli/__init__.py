"""The command line: one verb a file, each imported only when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, UnusedCliTokensError

from slimdeploy import __version__
from slimdeploy.console import arguments, note
from slimdeploy.errors import SlimdeployError, one_line
from slimdeploy.files import disk_refusal

_HELP = """Slim vision transformers for deployment: find the patches that the result does not need,
drop them layer by layer, prove that the rewritten graph is the model it claims to be.

Results go to stdout (--json for programs), progress and logs to stderr.
Exit codes: 0 success, 1 a check failed, 2 usage or bad input, 3 this machine lacks something.
"""

_UNREAD = 141
"""As a shell tells of a program whose reader has gone."""

# The summary stands here so that `--help` imports no verb, and so neither torch nor a runtime.
_VERBS = {
    "plan": "A data-free keep schedule: what slimming would gain.",
    "slim": "Search which patches each layer needs, on unlabelled images, and refit the rest.",
    "finetune": "Train the slim model end to end, distilling from the dense one.",
    "export": "Write the slim, lossless or dense model as ONNX, checked before it is kept.",
    "quantize": "Write a file in fp16, bf16, int8 or fp8, as casts and Q/DQ in its graph.",
    "verify": "Prove that a slim ONNX file computes what its schedule says.",
    "build": "An engine of TensorRT, TensorRT-RTX or ONNX Runtime, with what was read back of it.",
    "evaluate": "Accuracy and calibration on an image folder; with --dense, what slimming changed.",
    "sweep": "The front of accuracy, MACs and latency over budgets: records and a picture.",
    "profile": "Latency of dense and slim, interleaved, with an interval on the ratio.",
    "draw": "A picture: photographs with the patches that are still computed.",
    "inspect": "What is this file? A schedule, graph, engine, manifest or record, in words.",
    "doctor": "What works on this machine, what collides, and what to install.",
}


def make_app(verb: str | None = None) -> App:
    """The command line application; the help of `verb` is its whole docstring."""
    app = App(
        name="slimdeploy",
        help=_HELP,
        version=__version__,
        help_format="markdown" if verb in _VERBS else "plaintext",
        result_action="return_none",
        default_parameter=Parameter(negative_iterable=()),  # no --empty-mean beside --mean
        suppress_keyboard_interrupt=False,  # `main` says that it was interrupted
    )
    for name, summary in _VERBS.items():
        told = None if name == verb else summary
        app.command(f"slimdeploy.cli.{name}:{name}", name=name, help=told)
    return app


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line; ends the program with an exit code if anything is wrong."""
    words = list(sys.argv[1:] if words is None else words)
    arguments.set(tuple(words))
    try:
        make_app(next(iter(words), None))(words, exit_on_error=False, print_error=False)
    except SlimdeployError as error:
        note(f"slimdeploy: error: {error}")
        sys.exit(error.exit_code)
    except CycloptsError as error:
        note(f"slimdeploy: error: {_misuse(error, words)}")
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(_UNREAD)
    except SystemExit as end:  # rich's, which prints the help, for the same cause
        sys.exit(_UNREAD if isinstance(end.__context__, BrokenPipeError) else end.code)
    except OSError as error:
        if (line := disk_refusal(error)) is None:
            raise
        note(f"slimdeploy: error: {line}")
        sys.exit(2)
    except KeyboardInterrupt:
        note("slimdeploy: interrupted")
        sys.exit(130)


def _misuse(error: CycloptsError, words: Sequence[str]) -> str:
    """What the parser could not make sense of, and where the options are described."""
    verb = f" {words[0]}" if words and words[0] in _VERBS else ""
    said = one_line(error)
    if isinstance(error, UnusedCliTokensError):
        said = f"{' '.join(error.unused_tokens or ())}: no option before it takes so many values."
    elif isinstance(error, MissingArgumentError) and error.argument and error.tokens_so_far:
        wanted = error.argument.token_count()[0]
        given = " ".join(error.tokens_so_far)
        said = f"{error.argument.name} {given}: takes {wanted} values with spaces between."
    return f"{said} See `slimdeploy{verb} --help`."
