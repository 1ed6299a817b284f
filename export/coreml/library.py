"""coremltools, imported when it is needed and kept quiet: it prints, warns and draws progress bars on its own."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from lora_edge.errors import ExportError


def library() -> Any:
    """The package.

    Raises:
        ExportError: it is not installed.
    """
    try:
        with quiet():
            import coremltools
    except ModuleNotFoundError as error:
        raise ExportError(
            f"exporting to Core ML needs coremltools: pip install 'lora-edge[coreml]' ({error})"
        ) from error
    return coremltools


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Neither its log, nor its warnings, nor its progress bars; what it raises is told by whoever catches it."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
