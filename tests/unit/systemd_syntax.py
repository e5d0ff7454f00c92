"""How systemd reads what qsysd writes, after its own sources: the reference that the tests compare with.

EnvironmentFile=: parse_env_file_internal() in src/basic/env-file.c. An unbraced `$VARIABLE` in a command
line: replace_env_argv() in src/basic/env-util.c, which splits the value by extract_first_word() of
src/basic/extract-word.c with EXTRACT_RELAX and EXTRACT_UNQUOTE. Unit files: config_parse() in
src/shared/conf-parser.c.
"""

from __future__ import annotations

NEWLINE = "\n\r"
WHITESPACE = " \t\n\r"
SHELL_NEED_ESCAPE = '"\\`$'


def environment_file(text: str) -> dict[str, str]:
    """Return the variables of an EnvironmentFile; raise ValueError for a variable that systemd drops."""
    variables: dict[str, str] = {}
    state, key, value, blanks = "pre-key", "", "", -1
    for char in [*text, "\n"]:
        if state == "pre-key":
            if char in "#;":
                state = "comment"
            elif char not in WHITESPACE:
                state, key = "key", char
        elif state == "key":
            if char in NEWLINE:
                state = "pre-key"
            elif char == "=":
                state, value, blanks = "pre-value", "", -1
            else:
                key += char
        elif state in ("pre-value", "value"):
            if char in NEWLINE:
                if state == "value" and blanks >= 0:
                    value = value[:blanks]
                _push(variables, key.rstrip(WHITESPACE), value)
                state = "pre-key"
            elif state == "pre-value" and char == "'":
                state = "single"
            elif state == "pre-value" and char == '"':
                state = "double"
            elif char == "\\":
                state, blanks = "value-escape", -1
            elif char not in WHITESPACE:
                state, value, blanks = "value", value + char, -1
            elif state == "value":
                blanks = len(value) if blanks < 0 else blanks
                value += char
        elif state == "value-escape":
            state = "value"
            value += "" if char in NEWLINE else char
        elif state == "single":
            state, value = ("pre-value", value) if char == "'" else (state, value + char)
        elif state == "double":
            if char == '"':
                state = "pre-value"
            elif char == "\\":
                state = "double-escape"
            else:
                value += char
        elif state == "double-escape":
            state = "double"
            value += char if char in SHELL_NEED_ESCAPE else "" if char == "\n" else f"\\{char}"
        elif state == "comment":
            state = "comment-escape" if char == "\\" else "pre-key" if char in NEWLINE else state
        else:
            # before systemd 254, a backslash at its end continues a comment
            state = "comment"
    if state != "pre-key":
        raise ValueError(f"the file ends within a {state}")
    return variables


def _push(variables: dict[str, str], key: str, value: str) -> None:
    """Take a variable in, as load_env_file_push() and strv_env_clean() do."""
    if not key or not key.replace("_", "a").isalnum() or not key.isascii() or key[0].isdigit():
        raise ValueError(f"not the name of a variable: {key!r}")
    value.encode()
    if any((char < " " and char not in "\t\n") or char == "\x7f" for char in value):
        raise ValueError(f"{key} holds a control character")
    variables[key] = value


def split(value: str) -> list[str]:
    """Return the words that an unbraced `$VARIABLE` with this value stands for."""
    words: list[str] = []
    rest = value
    while True:
        rest = rest.lstrip(WHITESPACE)
        if not rest:
            return words
        word, quote, index = "", "", 0
        while index < len(rest):
            char = rest[index]
            if char == "\\":
                index += 1
                word += rest[index] if index < len(rest) else "\\"
            elif quote:
                if char == quote:
                    quote = ""
                else:
                    word += char
            elif char in "'\"":
                quote = char
            elif char in WHITESPACE:
                break
            else:
                word += char
            index += 1
        words.append(word)
        rest = rest[index:]


def unit(text: str) -> list[tuple[str, str, str]]:
    """Return section, name and value of each line of a unit file; raise ValueError for what is none."""
    found = []
    section = ""
    lines = iter(text.splitlines())
    for line in lines:
        line = line.strip(WHITESPACE)
        while line.endswith("\\") and line[0] not in "#;":
            line = line[:-1] + " " + next(lines, "")
        if not line or line[0] in "#;":
            continue
        if line.startswith("["):
            if not line.endswith("]"):
                raise ValueError(f"not a section: {line!r}")
            section = line[1:-1]
            continue
        name, equals, value = line.partition("=")
        if not equals or not section or not name.strip().isalnum():
            raise ValueError(f"not an assignment: {line!r}")
        found.append((section, name.strip(WHITESPACE), value.strip(WHITESPACE)))
    return found


def expand(value: str, **specifiers: str) -> str:
    """Return a value with its specifiers expanded: %% is a percent sign, %i the instance's name."""
    result, index = "", 0
    while index < len(value):
        if value[index] == "%":
            index += 1
            result += {"%": "%", **specifiers}[value[index : index + 1]]
        else:
            result += value[index]
        index += 1
    return result
