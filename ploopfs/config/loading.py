"""From a file to YAML nodes with their lines, and one ConfigError for what is not YAML that can be read here.

Knows no rule of any file. Refuses before it is built what could make a small file large or deep.
"""

import yaml
from yaml.nodes import Node

from ploopfs.bounds import MAX_CONFIG_BYTES, MAX_CONFIG_DEPTH
from ploopfs.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Composes nodes, and refuses what could make a small file large or deep before it is built."""

    _depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs forgot it
        if getattr(event, "anchor", None) is not None:  # an alias event carries the anchor it names
            raise yaml.MarkedYAMLError(None, None, "anchors and aliases are not accepted", event.start_mark)
        # The rules need fewer; deeper nesting would recurse without a bound in the composer.
        if self._depth == MAX_CONFIG_DEPTH:
            raise yaml.MarkedYAMLError(None, None, f"nested deeper than {MAX_CONFIG_DEPTH} levels", event.start_mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def fetch_more_tokens(self) -> None:
        """An escape beyond Unicode or a version of thousands of digits leaves the scanner as a bare ValueError.

        It scans a line ahead before anything is composed, and looks at every open bracket for each further one."""
        if self.flow_level > MAX_CONFIG_DEPTH:
            raise yaml.MarkedYAMLError(None, None, f"nested deeper than {MAX_CONFIG_DEPTH} levels", self.get_mark())
        try:
            super().fetch_more_tokens()
        except (ValueError, OverflowError) as error:
            raise yaml.MarkedYAMLError(None, None, str(error), self.get_mark()) from error


def read_text(file: str) -> str:
    try:
        with open(file, "rb") as stream:
            content = stream.read(MAX_CONFIG_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL, or with no bytes in this locale
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{file}: cannot be read: {reason}") from error
    if len(content) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{file}: is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}:{line}: byte 0x{content[error.start]:02x} is not UTF-8") from error


def compose(file: str, text: str) -> Node | None:
    """The file's one document; None when it holds nothing but comments."""
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{file}:{line}: a character that YAML does not allow: {text[error.position]!r}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}" if mark else file
        reason = ": ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{where}: not YAML that can be read here: {reason}") from error
